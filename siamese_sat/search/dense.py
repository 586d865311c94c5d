"""Feature maps over whole scenes, at several scales, tile by tile: a tile border changes no feature.

A *level* is the scene resized by ``128 / step``: ``step`` scene pixels become 128 level pixels, whole numbers on both
sides, so that tiles can be cut anywhere without shifting the resampling. Cell i of a stage with stride 8 is centred on
level pixel 8 * i (not 8 * i + 4): ResNet's odd kernels pad evenly, so every stride keeps its first pixel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.model.backbone import STRIDES
from siamese_sat.search.ahead import ahead
from siamese_sat.search.engine import Engine
from siamese_sat.search.part import Part, share

UNIT = 128
# Scene pixels along a tile's side, without its margins.
MOST_SCENE_PIXELS = 4096
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
class FeatureTile:
    """Features of one tile with a margin on all sides.

    Attributes:
        features: ``[channels, rows + 2 * margin, columns + 2 * margin]``, as the network has them.
        deep: gives ``[channels, h, w]`` of the deep stage, all that the network sees; it runs when this is called, for
            a tile in which nothing resembles what is sought needs it not. None where no deep stage was asked for.
        origin: row and column, in ``deep``, of the place on which the first cell of ``features`` is centred.
        valid: ``[rows, columns]`` which cells lie on valid pixels.
        x_first: cell of the level's first column here, without margin.
        y_first: likewise for rows.
    """

    features: Tensor
    deep: Callable[[], Tensor] | None
    origin: tuple[float, float]
    valid: npt.NDArray[np.bool_]
    x_first: int
    y_first: int


def spans(length: int, stride: int, reach: int, margin: int, tile: int, phase: int = 1) -> Iterator[Span]:
    """Cuts ``length`` level pixels into tiles.

    Args:
        length: level pixels of the scene.
        stride: level pixels of a cell.
        reach: level pixels that a cell sees on either side of its centre, at most.
        margin: cells wanted on either side of a tile, beyond the scene's border too.
        tile: level pixels of a tile, about.
        phase: tiles start at multiples of so many cells, so that the grid of a deeper stage is the same in all; so must
            ``margin`` be.
    """
    cells = (length - 1) // stride + 1
    per_tile = max(1, tile // stride)
    parts = math.ceil(cells / per_tile)
    # Narrow tiles may fall on the same border: one of them is enough.
    inner = {round(i * cells / parts / phase) * phase for i in range(1, parts)}
    borders = [0, *sorted(b for b in inner if 0 < b < cells), cells]
    around = math.ceil(reach / stride / phase) * phase
    for first, last in itertools.pairwise(borders):
        # Beyond the scene lies a margin of nothing, the same for every tile; beyond that, the network's own padding.
        start = max(first - margin - around, -margin)
        stop = min(last + margin + around, cells + margin)
        yield Span(first, last, margin, start * stride, stop * stride)


def feature_tiles(
    engine: Engine,
    scene: Scene,
    radiometry: Radiometry,
    step: int,
    *,
    stage: str = "layer2",
    deep: str | None = None,
    margin: int = 5,
    tile: int = 1024,
    min_valid: float = 0.5,
    part: Part = (0, 1),
    align: int = 1,
) -> Iterator[FeatureTile]:
    """Feature maps of a scene at one level.

    Args:
        engine: its embedder's backbone is used up to ``stage``.
        scene: read tile by tile.
        radiometry: normalises it; where nothing is valid the band mean stands, 0 after normalisation.
        step: scene pixels that become 128 level pixels.
        stage: of the backbone.
        deep: a later stage whose features are wanted too.
        margin: cells on either side; with a deep stage, a multiple of the ratio of their strides.
        tile: level pixels of a tile.
        min_valid: cells with less valid pixels are marked invalid; tiles without a valid cell are left out.
        part: of the tiles.
        align: tiles begin at multiples of so many cells.
    """
    stride = STRIDES[stage]
    x0, y0, x1, y1 = scene.aoi
    lengths = [max(1, math.ceil(n * UNIT / step)) for n in (x1 - x0, y1 - y0)]
    reach = engine.embedder.backbone.reach(deep or stage)
    phase = STRIDES[deep] // stride if deep else 1
    align = math.lcm(align, phase)
    if margin % phase:
        raise ValueError(f"margin {margin} is no multiple of {phase}")
    # Large things are searched in scenes made small: a tile must not grow beyond memory on the scene's side.
    tile = max(stride, min(tile, MOST_SCENE_PIXELS * UNIT // step))
    columns = list(spans(lengths[0], stride, reach, margin, tile, align))
    places = [(row, column) for row in spans(lengths[1], stride, reach, margin, tile, align) for column in columns]
    # One ahead: tiles are large.
    for row, column, stored in ahead(_read_ahead(scene, radiometry, step, share(places, part)), 1):
        pixels, valid = to_level(stored, radiometry, engine.device)
        y, x = row.first - row.start // stride, column.first - column.start // stride
        inside = valid_share(valid, stride)[y : y + row.last - row.first, x : x + column.last - column.first]
        # Cells on the scene's border are half inside it, whichever way rounding falls.
        cells = inside.numpy() >= min_valid - 1e-3
        if not cells.any():
            continue
        found = first_stage(engine, pixels, stage)
        y = row.first - margin - row.start // stride
        x = column.first - margin - column.start // stride
        height, width = row.last - row.first + 2 * margin, column.last - column.first + 2 * margin
        shallow = found[0, :, y : y + height, x : x + width]
        further = functools.partial(_deep_of, engine, found, stage, deep) if deep else None
        yield FeatureTile(shallow, further, (y / phase, x / phase), cells, column.first, row.first)


@torch.inference_mode()
def first_stage(engine: Engine, pixels: Tensor, stage: str) -> Tensor:
    """Features ``[N, channels, H / stride, W / stride]``, as the network has them, of normalised images.

    Args:
        engine: its embedder's backbone is used.
        pixels: ``[C, H, W]`` or ``[N, C, H, W]``.
        stage: of the backbone.
    """
    images = pixels if pixels.ndim == 4 else pixels[None]
    found: Tensor = engine.embedder.features(images.contiguous(memory_format=torch.channels_last), stage)
    return found


@torch.inference_mode()
def later_stage(engine: Engine, found: Tensor, stage: str, deep: str) -> Tensor:
    """Features ``[N, channels, h, w]`` of a later stage, of what `first_stage` gave."""
    further: Tensor = engine.embedder.further(found, deep, stage)
    return further


def features(engine: Engine, pixels: Tensor, stage: str) -> Tensor:
    """Features ``[channels, H / stride, W / stride]`` in float32 of one normalised image ``[C, H, W]``."""
    return first_stage(engine, pixels, stage)[0].float()


def stages(engine: Engine, pixels: Tensor, stage: str, deep: str | None = None) -> tuple[Tensor, Tensor | None]:
    """Features as `features` gives them, and those of a later stage if one is named, in one pass."""
    found = first_stage(engine, pixels, stage)
    return found[0].float(), _deep_of(engine, found, stage, deep).float() if deep else None


def _deep_of(engine: Engine, found: Tensor, stage: str, deep: str) -> Tensor:
    return later_stage(engine, found, stage, deep)[0]


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


def _read_ahead(
    scene: Scene, radiometry: Radiometry, step: int, places: Sequence[tuple[Span, Span]]
) -> Generator[tuple[Span, Span, StoredLevel], None, None]:
    """Tiles (row, column) in order, those without a valid pixel left out."""
    with SceneReader(scene) as reader:
        for row, column in places:
            stored = read_stored(reader, radiometry, step, column, row)
            if stored.valid.any():
                yield row, column, stored


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
        share = torch.ones(level.shape[1:])
    else:
        valid = torch.from_numpy(stored.valid.astype(np.float32))
        share = resize(valid[None, None], *stored.size)[0, 0, rows, columns]
    return level, share


def valid_share(valid: Tensor, stride: int) -> Tensor:
    """Valid fraction ``[h / stride, w / stride]`` of each cell, over the pixels round its centre."""
    # A cell is centred on the first of its pixels: shift by half a stride before averaging.
    padded = F.pad(valid[None, None], (stride // 2, 0, stride // 2, 0), mode="replicate")
    return F.avg_pool2d(padded, stride)[0, 0]
