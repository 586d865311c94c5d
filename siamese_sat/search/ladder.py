"""At which sizes a scene is searched: one ladder of levels for all classes, so that they share feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from siamese_sat.search.dense import UNIT


def ladder(
    sizes: Mapping[str, Sequence[float]],
    object_size: float,
    step: float,
    least: int,
    most: int,
    max_zoom: float | None = None,
) -> dict[str, tuple[int, ...]]:
    """Levels of each class: from one below its smallest exemplar to one above its largest.

    Args:
        sizes: longer sides of a class's exemplars, scene pixels.
        object_size: level pixels to which a longer side is brought.
        step: ratio of neighbouring levels, above 1.
        least: levels on either side of the median exemplar, at least.
        most: at most.
        max_zoom: level pixels per scene pixel, at most, or as many as the median exemplar's own level has: finer levels
            cost by the square and show blurs. None: no limit.

    Returns:
        By class, scene pixels that become 128 level pixels, rising.
    """
    anchor, ratio = float(np.median(next(iter(sizes.values())))), math.log(step)
    found = {}
    for name, longer in sizes.items():
        middle = round(math.log(float(np.median(longer)) / anchor) / ratio)
        low = math.floor(math.log(min(longer) / anchor) / ratio + 0.5) - 1
        high = math.floor(math.log(max(longer) / anchor) / ratio + 0.5) + 1
        low = max(min(low, middle - least), middle - most)
        high = min(max(high, middle + least), middle + most)
        if max_zoom is not None:
            finest = math.ceil(math.log(object_size / max_zoom / anchor) / ratio - 1e-9)
            low = max(low, min(finest, middle))
        wanted = (anchor * step**k / object_size * UNIT for k in range(low, high + 1))
        found[name] = tuple(sorted({max(1, round(s)) for s in wanted}))
    return found
