"""At which sizes a scene is searched: one ladder of sizes for all classes, and few levels that serve many of them.

A rung is a size of things. At a level of its own, things of a rung appear at the one size at which templates are made;
but the finest rungs cost most of a search, by the square. So neighbouring rungs share a level, in which templates are
made at as many sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from siamese_sat.search.level import UNIT


@dataclass(frozen=True, order=True)
class Rung:
    """Things of one size, and the level in which they are sought.

    Attributes:
        step: scene pixels that become 128 level pixels.
        appears: level pixels of their longer side there.
    """

    step: int
    appears: float


def ladder(
    sizes: Mapping[str, Sequence[float]],
    object_size: float,
    ratio: float,
    least: int,
    most: int,
    max_zoom: float | None = None,
    sizes_per_level: int = 1,
) -> dict[str, tuple[Rung, ...]]:
    """Rungs of each class: from one below its smallest exemplar to one above its largest.

    Args:
        sizes: longer sides of a class's exemplars, scene pixels.
        object_size: level pixels of a thing in a level of its own; with more sizes to a level, the middle one.
        ratio: of neighbouring sizes, above 1.
        least: rungs on either side of the median exemplar, at least.
        most: smaller than the median exemplar, at most; twice as many that are larger, which take little time.
        max_zoom: ``object_size`` per scene pixel of the smallest things, at most, or as many as the median exemplar
            has: smaller ones cost by the square and show blurs. None: no limit.
        sizes_per_level: neighbouring rungs that share a level; no more than there are.

    Returns:
        By class, rising.
    """
    anchor = float(np.median(next(iter(sizes.values()))))

    def place(size: float) -> float:
        return math.log(size / anchor) / math.log(ratio)

    finest = None if max_zoom is None else math.ceil(place(object_size / max_zoom) - 1e-9)
    rungs = {}
    for name, longer in sizes.items():
        middle = round(place(float(np.median(longer))))
        low, high = (math.floor(place(size) + 0.5) for size in (min(longer), max(longer)))
        low = max(min(low - 1, middle - least), middle - most)
        if finest is not None:
            low = max(low, min(finest, middle))
        high = max(min(high + 1, middle + 2 * most), middle + min(least, most))
        rungs[name] = range(low, high + 1)
    every = sorted({k for found in rungs.values() for k in found})
    per_level = min(sizes_per_level, len(every))
    offset = min(range(per_level), key=lambda o: _cost(every, ratio, per_level, o))
    return {
        name: tuple(sorted({_rung(k, anchor, object_size, ratio, per_level, offset) for k in found}))
        for name, found in rungs.items()
    }


def _level(rung: int, per_level: int, offset: int) -> float:
    """The rung, or place between two, whose things appear at the middle size in this rung's level."""
    return (rung - offset) // per_level * per_level + offset + (per_level - 1) / 2


def _cost(rungs: Sequence[int], ratio: float, per_level: int, offset: int) -> float:
    """Level pixels of a search, to a factor."""
    levels = sorted({_level(k, per_level, offset) for k in rungs})
    return float(sum(ratio ** (-2 * level) for level in levels))


def _rung(rung: int, anchor: float, object_size: float, ratio: float, per_level: int, offset: int) -> Rung:
    level = _level(rung, per_level, offset)
    return Rung(max(1, round(anchor * ratio**level / object_size * UNIT)), object_size * ratio ** (rung - level))
