"""Where windows lie: pure functions on numbers, no pixels and no files.

A *level* is the scene resized so that a window of ``window`` scene pixels becomes ``size`` (64) pixels. Window places,
tiles and strides are whole numbers of level pixels; only boxes are in scene pixels. Along one axis, for a scene of 200
pixels, windows of 96 and stride 32 at size 64::

    level length   ceil(200 * 64 / 96) = 134
    places         0, 32, 64, 70        the last is clamped inward so that the scene's end is seen
    in the scene   0, 48, 96, 105       70 * 96 / 64; the last window ends at 201, one pixel of it beyond the scene
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siamese_sat.errors import InputError

# Pixels that a tile holds along a side before the margins, of the scene and of the level, unless a window is larger.
TILE = 1536
# For a network that runs once over a tile: its margins are computed, not only read.
DENSE_TILE = 2048


def level_length(length: int, window: int, size: int) -> int:
    """Level pixels of ``length`` scene pixels, at least one window."""
    return max(size, math.ceil(length * size / window))


def places(length: int, size: int, stride: int) -> npt.NDArray[np.int64]:
    """First pixels of the windows over ``length`` level pixels: every stride, the last one clamped inward."""
    if stride < 1 or stride > size:
        raise InputError(
            f"search.stride={stride} must lie between 1 and the chip size {size}: windows may not skip pixels."
        )
    regular = np.arange(0, max(length - size, 0) + 1, stride)
    return regular if regular[-1] >= length - size else np.append(regular, length - size)


@dataclass(frozen=True)
class AxisTile:
    """The part of one axis that is read at once.

    Attributes:
        source: first scene pixel, counted from the area of interest; may be negative.
        source_length: scene pixels to read; may reach beyond the end.
        level_length: level pixels that they become.
        offsets: first pixel of each window, within these level pixels.
        places: the same, from the level's start.
        seen: the first of these level pixels that a window of the scene shows, and the one after the last.
    """

    source: int
    source_length: int
    level_length: int
    offsets: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    seen: tuple[int, int]


def axis_tiles(length: int, window: int, size: int, stride: int, tile: int = TILE) -> Iterator[AxisTile]:
    """Cuts one axis into tiles whose windows come out as if the whole axis had been resized at once.

    Tiles begin at whole numbers of both scene and level pixels, and carry a margin that the antialiasing filter
    needs; so a tile border changes no pixel of a window.

    Args:
        length: scene pixels of the area of interest.
        window: scene pixels of a window.
        size: level pixels of a window.
        stride: level pixels between windows.
        tile: pixels of a tile, of the scene or of the level, whichever are more, about.
    """
    common = math.gcd(window, size)
    source_step, level_step = window // common, size // common
    # The filter reaches one level pixel (bilinear) or its source extent to either side.
    reach = 2 * max(1, math.ceil(window / size)) if window != size else 0
    margin = math.ceil(reach / source_step)
    # Small windows are enlarged: their level would not fit in memory where their part of the scene does.
    steps = max(1, max(min(tile, tile * window // size), window) // source_step)
    where = places(level_length(length, window, size), size, stride)
    number = where // (steps * level_step)
    for n in np.unique(number):
        mine = where[number == n]
        first = int(n) * steps - margin
        last = math.ceil((int(mine[-1]) + size) / level_step) + margin
        yield _axis_tile(first, last, source_step, level_step, mine, int(where[-1]) + size)


def dense_tiles(
    length: int, window: int, size: int, stride: int, around: int, tile: int = DENSE_TILE
) -> Iterator[AxisTile]:
    """As `axis_tiles`, for a network that runs once over a tile: places are whole strides, and tiles show more.

    The last place is not clamped inward: its window reaches beyond the scene, by less than a stride.

    Args:
        length: scene pixels of the area of interest.
        window: scene pixels of a window.
        size: level pixels of a window, a multiple of ``stride``.
        stride: level pixels between windows.
        around: windows' sides by which a tile reaches beyond its own on either side.
        tile: pixels of a tile, of the scene or of the level, whichever are more, about.
    """
    steps = max(1, min(tile, tile * window // size) // window)
    where = np.arange(math.ceil((level_length(length, window, size) - size) / stride) + 1) * stride
    number = where // (steps * size)
    for n in np.unique(number):
        mine = where[number == n]
        first, last = int(n) * steps - around, math.ceil((int(mine[-1]) + size) / size) + around
        yield _axis_tile(first, last, window, size, mine, int(where[-1]) + size)


def _axis_tile(
    first: int, last: int, source_step: int, level_step: int, places: npt.NDArray[np.int64], end: int
) -> AxisTile:
    """From one step to another, of a level whose last window ends at ``end``."""
    start, length = first * level_step, (last - first) * level_step
    return AxisTile(
        source=first * source_step,
        source_length=(last - first) * source_step,
        level_length=length,
        offsets=places - start,
        places=places,
        seen=(max(0, -start), min(length, end - start)),
    )


def boxes(
    x_places: npt.NDArray[np.int64],
    y_places: npt.NDArray[np.int64],
    window: tuple[int, int],
    size: int,
    origin: tuple[int, int] = (0, 0),
) -> npt.NDArray[np.float64]:
    """Scene boxes ``[len(y) * len(x), 4]`` of windows, row by row.

    Args:
        x_places: level pixels.
        y_places: level pixels.
        window: width and height in scene pixels.
        size: level pixels of a window.
        origin: scene pixel of the level's first.
    """
    x, y = np.meshgrid(x_places * window[0] / size + origin[0], y_places * window[1] / size + origin[1])
    corner = np.stack([x.ravel(), y.ravel()], axis=1)
    return np.concatenate([corner, corner + np.asarray(window, dtype=float)], axis=1)
