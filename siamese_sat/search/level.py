"""A scene at another scale, read part by part: where parts are cut changes no pixel.

A *level* is the scene resized by ``128 / step``: ``step`` scene pixels become 128 level pixels, whole numbers on both
sides, so that parts can be cut anywhere without shifting the resampling. Of a step that shares a divisor with 128, the
parts are as many times smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import SceneReader

UNIT = 128
# Level pixels that the resampling filter may reach beyond what it makes; half a scene pixel where that is more.
FILTER = 8
# Standard deviation, scene pixels, of what a point of the ground becomes: optics, resampling and compression add to the
# 1 / sqrt(12) of a pixel's own width.
SOFTNESS = 0.7
# A blur of fewer level pixels changes nothing that the network sees.
LEAST_BLUR = 0.6
# Standard deviations at which a Gaussian ends.
ENDS = 3


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
        around: level pixels of the tile on the left, right, top and bottom of them, where the scene is not.
    """

    pixels: npt.NDArray[np.generic]
    valid: npt.NDArray[np.bool_]
    size: tuple[int, int]
    cut: tuple[slice, slice]
    around: tuple[int, int, int, int] = (0, 0, 0, 0)


def read_level(
    reader: SceneReader, radiometry: Radiometry, step: int, column: Span, row: Span, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One tile's pixels ``[C, h, w]``, normalised, and their valid fraction ``[h, w]``, on the level's own grid."""
    return to_level(read_stored(reader, radiometry, step, column, row), radiometry, device)


def read_stored(reader: SceneReader, radiometry: Radiometry, step: int, column: Span, row: Span) -> StoredLevel:
    """What `read_level` needs of the file; no arithmetic."""
    starts, counts, cuts, around = [], [], [], []
    beyond = max(FILTER, math.ceil(UNIT / step / 2))
    parts = math.gcd(step, UNIT)
    apart, unit = step // parts, UNIT // parts
    x0, y0, x1, y1 = reader.scene.aoi
    for span, length in ((column, x1 - x0), (row, y1 - y0)):
        # Beyond the reach of the scene all is alike: of a large thing's level most is, and must not fill the memory.
        lowest, highest = math.floor(-beyond / unit), math.ceil((length * UNIT / step + beyond) / unit)
        first = min(max(math.floor((span.start - beyond) / unit), lowest), highest - 1)
        last = max(min(math.ceil((span.stop + beyond) / unit), highest), first + 1)
        starts.append(first * apart)
        counts.append(last - first)
        begin, end = (min(max(at, first * unit), last * unit) for at in (span.start, span.stop))
        cuts.append(slice(begin - first * unit, end - first * unit))
        around += [begin - span.start, span.stop - end] if begin < end else [span.stop - span.start, 0]
    raw, valid = reader.read(x0 + starts[0], y0 + starts[1], counts[0] * apart, counts[1] * apart)
    size = (counts[1] * unit, counts[0] * unit)
    left, right, top, bottom = around
    return StoredLevel(radiometry.fill(raw, valid), valid, size, (cuts[1], cuts[0]), (left, right, top, bottom))


def to_level(stored: StoredLevel, radiometry: Radiometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `read_level` gives, of what has been read."""
    on_device = torch.from_numpy(stored.pixels).to(device)
    rows, columns = stored.cut
    # Band by band, and normalised when small: of a large thing's tile, floats of all bands would fill the memory.
    small = [resize(band[None, None].to(torch.float32), *stored.size)[0, 0, rows, columns] for band in on_device]
    if any(stored.around):
        nothing = radiometry.fill(stored.pixels[:, :1, :1], np.zeros((1, 1), dtype=bool))[:, 0, 0].tolist()
        small = [F.pad(band, stored.around, value=mean) for band, mean in zip(small, nothing, strict=True)]
    level = radiometry.normalise(torch.stack(small))
    if stored.valid.all() and not any(stored.around):
        share = torch.ones(()).expand(level.shape[1:])
    else:
        valid = torch.from_numpy(stored.valid.astype(np.float32))
        share = F.pad(resize(valid[None, None], *stored.size)[0, 0, rows, columns], stored.around)
    return level, share


def blur_of(covers: float, grain: float) -> float:
    """Standard deviation, level pixels, of the Gaussian by which a level shows no more than one of ``grain``.

    Imagery is blurred by about `SOFTNESS` scene pixels, which grow with the level; what is resized to less than its own
    size is blurred by as many of the level's.

    Args:
        covers: level pixels of a scene pixel.
        grain: the same in the level that is to be matched; 0: none is.

    Returns:
        0 where the Gaussian would change nothing that the network sees.
    """
    sigma = SOFTNESS * math.sqrt(max(grain**2 - max(covers, 1.0) ** 2, 0.0))
    return sigma if sigma >= LEAST_BLUR else 0.0


def apron_of(sigma: float) -> int:
    """Pixels on either side that a blurred one is made of."""
    return math.ceil(ENDS * sigma)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """``[C, h, w]`` under a Gaussian of ``sigma`` pixels; those within `apron_of` it of the border are not whole."""
    wide = 2 * apron_of(sigma) + 1
    if wide == 1:
        return pixels
    rows: Tensor = gaussian_blur(pixels, [1, wide], [sigma, sigma])  # an axis at a time: far fewer products
    along: Tensor = gaussian_blur(rows, [wide, 1], [sigma, sigma])
    return along


def valid_share(valid: Tensor, stride: int) -> Tensor:
    """Valid fraction ``[h / stride, w / stride]`` of each cell, over the pixels round its centre."""
    if (valid >= 1).all():
        return torch.ones([(n + stride // 2) // stride for n in valid.shape])
    # A cell is centred on the first of its pixels: shift by half a stride before averaging.
    padded = F.pad(valid[None, None], (stride // 2, 0, stride // 2, 0), mode="replicate")
    return F.avg_pool2d(padded, stride)[0, 0]
