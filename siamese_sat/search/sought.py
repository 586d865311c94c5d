"""At which sizes, and in which levels, a template search seeks the classes that it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from siamese_sat.search.exemplar import NEGATIVE, Exemplar
from siamese_sat.search.ladder import Rung, grained, ladder
from siamese_sat.search.patch import sides_of

if TYPE_CHECKING:
    from siamese_sat.search.template import TemplateSearch


@dataclass(frozen=True)
class Sought:
    """Rungs by class, those of marked mistakes among them.

    Attributes:
        rungs: all.
        own: sizes and levels of these, whatever their grain, that the exemplars ask for: larger ones are sought beside
            them, but what is ordinary is learned here.
    """

    rungs: Mapping[str, tuple[Rung, ...]]
    own: Mapping[str, tuple[Rung, ...]]

    @property
    def steps(self) -> list[int]:
        """Levels that exemplars ask for, rising."""
        return sorted({r.step for found in self.own.values() for r in found})

    @property
    def leading(self) -> set[int]:
        """Those of them that not only marked mistakes ask for."""
        return {r.step for name, found in self.own.items() if not name.startswith(NEGATIVE) for r in found}

    @property
    def appears(self) -> float:
        """Level pixels of what appears largest; a mistake may, for one that a template cuts off is a mistake still."""
        return max(r.appears for name, found in self.rungs.items() if not name.startswith(NEGATIVE) for r in found)


def sought(method: TemplateSearch, groups: Mapping[str, Sequence[Exemplar]]) -> Sought:
    """Where exemplars, by class, are sought by a method of these settings."""
    sizes = {name: [max(sides_of(e)) for e in group] for name, group in groups.items()}
    # Marked mistakes must not change how what is sought appears.
    following = [name for name in groups if name.startswith(NEGATIVE)]
    rungs, few = (
        ladder(
            sizes,
            method.object_size,
            method.scale_step,
            method.min_levels,
            method.max_levels,
            method.max_zoom,
            method.sizes_per_level,
            following,
            larger,
        )
        for larger in (method.larger_levels, 0)
    )
    own = {name: rungs[name][: len(found)] for name, found in few.items()}
    if method.match_detail:
        rungs = {name: _grained(name, rungs, sizes) for name in rungs}
    return Sought(rungs, own)


def _grained(name: str, rungs: Mapping[str, Sequence[Rung]], sizes: Mapping[str, Sequence[float]]) -> tuple[Rung, ...]:
    """Marked mistakes are seen as what they are mistaken for: where they are so of all, as what is nearest in size."""
    of = name.removeprefix(NEGATIVE)
    if of not in rungs:
        size = np.median(sizes[name])
        of = min(
            (other for other in rungs if not other.startswith(NEGATIVE)),
            key=lambda other: abs(np.log(np.median(sizes[other]) / size)),
        )
    return grained(rungs[name], float(np.median(sizes[of])), rungs[of])
