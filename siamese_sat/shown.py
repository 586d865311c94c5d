"""What a search is shown: exemplars, negatives, and rows of an earlier search as either."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.scene import Scene
from siamese_sat.search.exemplar import Exemplar, ExemplarSource
from siamese_sat.search.feedback import read_detections, rows_as_exemplars

log = logging.getLogger(__name__)

# Classes that the log counts one by one.
NAMED = 20
# Settings of exemplars, and those of rows of an earlier search that join them.
GROUPS = {"exemplars": "positives", "negatives": "negatives"}


def check_shown(cfg: DictConfig) -> None:
    """Says which file of what is shown is missing: for before something long begins; arguments as of `read_shown`.

    Raises:
        InputError: there is one.
    """
    for group in GROUPS:
        source: ExemplarSource = instantiate(cfg[group], setting=group, _convert_="all")
        source.check()
    if cfg.feedback.detections is not None:
        read_detections(str(cfg.feedback.detections))


def read_shown(
    cfg: DictConfig, bands: Sequence[int], chip: ChipSpec, scene_of: Callable[[str], Scene]
) -> tuple[list[Exemplar], list[Exemplar]]:
    """Positive and negative exemplars.

    Args:
        cfg: as ``conf/search.yaml`` composes it; looked at are ``exemplars``, ``negatives`` and ``feedback``.
        bands: of the searched scenes.
        chip: how chips were cut.
        scene_of: the scene that a ``filename`` of an earlier search means.

    Raises:
        InputError: a source is missing or malformed.
    """
    found: list[list[Exemplar]] = []
    for group, rows in GROUPS.items():
        source: ExemplarSource = instantiate(cfg[group], setting=group, _convert_="all")
        mine = source.load(bands, cfg.alpha, chip) if source.given else []
        if cfg.feedback.detections is not None:
            numbers = list(cfg.feedback[rows])
            mine += rows_as_exemplars(str(cfg.feedback.detections), numbers, scene_of, f"feedback.{rows}")
        found.append(mine)
        if mine:
            counts = Counter(e.class_name for e in mine)
            named = [f"{name} {count}" for name, count in counts.most_common(NAMED)]
            more = f", and {len(counts) - NAMED} more classes" if len(counts) > NAMED else ""
            log.info("%s: %s%s.", group.capitalize(), ", ".join(named), more)
    return found[0], found[1]
