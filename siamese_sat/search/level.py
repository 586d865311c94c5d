"""A scene at another scale, read part by part: where parts are cut changes no pixel.

A *level* is the scene resized by ``128 / step``: ``step`` scene pixels become 128 level pixels, whole numbers on both
sides, so that parts can be cut anywhere without shifting the resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import SceneReader

UNIT = 128
# Level pixels that the resampling filter may reach beyond what it makes; half a scene pixel where that is more.
FILTER = 8


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in cells and level pixels.

    Attributes:
        first: first cell that this tile answers for.
        last: one past its last.
        margin: cells known on either side of these.
        start: first level pixel that the network sees.
        stop: one past the last.
    """

    first: int
    last: int
    margin: int
    start: int
    stop: int


@dataclass(frozen=True)
class StoredLevel:
    """One tile's pixels as they are stored, and how they become a part of a level.

    Attributes:
        pixels: ``[C, h, w]``; the band mean where nothing valid is.
        valid: ``[h, w]``.
        size: height and width to which they are resized.
        cut: of these, the rows and columns that are the tile.
    """

    pixels: npt.NDArray[np.generic]
    valid: npt.NDArray[np.bool_]
    size: tuple[int, int]
    cut: tuple[slice, slice]


def read_level(
    reader: SceneReader, radiometry: Radiometry, step: int, column: Span, row: Span, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One tile's pixels ``[C, h, w]``, normalised, and their valid fraction ``[h, w]``, on the level's own grid."""
    return to_level(read_stored(reader, radiometry, step, column, row), radiometry, device)


def read_stored(reader: SceneReader, radiometry: Radiometry, step: int, column: Span, row: Span) -> StoredLevel:
    """What `read_level` needs of the file; no arithmetic."""
    starts, counts, cuts = [], [], []
    beyond = max(FILTER, math.ceil(UNIT / step / 2))
    for span in (column, row):
        first = math.floor((span.start - beyond) / UNIT)
        last = math.ceil((span.stop + beyond) / UNIT)
        starts.append(first * step)
        counts.append(last - first)
        cuts.append(slice(span.start - first * UNIT, span.stop - first * UNIT))
    x0, y0 = reader.scene.aoi[:2]
    raw, valid = reader.read(x0 + starts[0], y0 + starts[1], counts[0] * step, counts[1] * step)
    size = (counts[1] * UNIT, counts[0] * UNIT)
    return StoredLevel(radiometry.fill(raw, valid), valid, size, (cuts[1], cuts[0]))


def to_level(stored: StoredLevel, radiometry: Radiometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `read_level` gives, of what has been read."""
    on_device = torch.from_numpy(stored.pixels).to(device)
    rows, columns = stored.cut
    # Band by band, and normalised when small: of a large thing's tile, floats of all bands would fill the memory.
    small = [resize(band[None, None].to(torch.float32), *stored.size)[0, 0, rows, columns] for band in on_device]
    level = radiometry.normalise(torch.stack(small))
    if stored.valid.all():
        share = torch.ones(()).expand(level.shape[1:])
    else:
        valid = torch.from_numpy(stored.valid.astype(np.float32))
        share = resize(valid[None, None], *stored.size)[0, 0, rows, columns]
    return level, share


def valid_share(valid: Tensor, stride: int) -> Tensor:
    """Valid fraction ``[h / stride, w / stride]`` of each cell, over the pixels round its centre."""
    if (valid >= 1).all():
        return torch.ones([(n + stride // 2) // stride for n in valid.shape])
    # A cell is centred on the first of its pixels: shift by half a stride before averaging.
    padded = F.pad(valid[None, None], (stride // 2, 0, stride // 2, 0), mode="replicate")
    return F.avg_pool2d(padded, stride)[0, 0]
