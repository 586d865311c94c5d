"""What the settings of a search by templates may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STAGES, STRIDES

if TYPE_CHECKING:
    from siamese_sat.search.template import TemplateSearch


def check_template_settings(method: TemplateSearch) -> None:
    """Says which setting cannot be.

    Raises:
        InputError: there is one.
    """
    if (
        method.cells % 2 == 0
        or method.cells < 1
        or method.views < 1
        or method.scale_step <= 1
        or method.size_spread <= 0
    ):
        raise InputError(
            "search.method: cells must be odd, views 1 or more, scale_step above 1 and size_spread above 0."
        )
    if method.sizes_per_level < 1:
        raise InputError("search.method: sizes_per_level must be 1 or more.")
    check_width(method, method.object_size * method.scale_step ** ((method.sizes_per_level - 1) / 2))
    if not 0 <= method.contrast <= 1:
        raise InputError("search.method: contrast must lie between 0 and 1.")
    if not 0 < method.oblique_trust <= 1:
        raise InputError("search.method: oblique_trust must be above 0, and 1 at most.")
    if not 0 <= method.deep_weight < math.inf or method.deep_cells % 2 == 0 or method.deep_cells < 1:
        raise InputError("search.method: deep_weight must be 0 or more, and deep_cells odd.")
    for name, stage in (("stage", method.stage), ("deep", method.deep_stage)):
        if stage is not None and stage not in STAGES:
            raise InputError(f"search.method.{name}={stage!r} is no backbone stage; stages are {', '.join(STAGES)}.")
    if method.deep_stage is not None and STAGES.index(method.deep_stage) <= STAGES.index(method.stage):
        raise InputError(
            f"search.method.deep={method.deep_stage!r} does not come after search.method.stage={method.stage!r}; "
            "give a later stage, or null."
        )


def check_width(method: TemplateSearch, largest: float) -> None:
    """Refuses settings by which things of ``largest`` level pixels do not fit in a template.

    Raises:
        InputError: they do not.
    """
    wide = method.cells * STRIDES.get(method.stage, 0)
    if method.sizes_per_level > 1 and 0 < wide < largest:
        raise InputError(
            f"search.method: sizes_per_level={method.sizes_per_level} seeks things of {largest:.0f} level pixels in "
            f"templates of {wide}; set a smaller sizes_per_level or object_size, or more cells."
        )
