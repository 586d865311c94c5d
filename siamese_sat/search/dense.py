"""Feature maps over whole scenes, at several scales, tile by tile: a tile border changes no feature.

Tiles go down one column of the scene after the other. What the first stage made of the rows that the next tile needs
too is kept, so that it computes them once; only between columns is it done twice. Cell i of a stage with stride 8 is
centred on level pixel 8 * i (not 8 * i + 4): ResNet's odd kernels pad evenly, so every stride keeps its first pixel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.model.backbone import STRIDES
from siamese_sat.search.ahead import ahead
from siamese_sat.search.engine import Engine
from siamese_sat.search.level import UNIT, Span, StoredLevel, apron_of, blurred, read_stored, to_level, valid_share
from siamese_sat.search.part import Part, share

# Scene pixels along a tile's side, without its margins.
MOST_SCENE_PIXELS = 4096


@dataclass(frozen=True)
class FeatureTile:
    """Features of one tile with a margin on all sides.

    Attributes:
        features: ``[channels, rows + 2 * margin, columns + 2 * margin]``, as the network has them.
        deep: gives ``[channels, h, w]`` of the deep stage, all that the network sees; it runs when this is called, for
            a tile in which nothing resembles what is sought needs it not. None where no deep stage was asked for.
        origin: row and column, in ``deep``, of the place on which the first cell of ``features`` is centred.
        valid: ``[rows, columns]`` which cells lie on valid pixels.
        around: the same with the margin.
        x_first: cell of the level's first column here, without margin.
        y_first: likewise for rows.
    """

    features: Tensor
    deep: Callable[[], Tensor] | None
    origin: tuple[float, float]
    valid: npt.NDArray[np.bool_]
    around: npt.NDArray[np.bool_]
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
    blur: float = 0.0,
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
        blur: standard deviation, level pixels, of a Gaussian under which the level is seen; 0: none.
    """
    stride = STRIDES[stage]
    x0, y0, x1, y1 = scene.aoi
    lengths = [max(1, math.ceil(n * UNIT / step)) for n in (x1 - x0, y1 - y0)]
    backbone = engine.embedder.backbone
    reach, own = backbone.reach(deep or stage), backbone.reach(stage)
    phase = STRIDES[deep] // stride if deep else 1
    align = math.lcm(align, phase)
    if margin % phase:
        raise ValueError(f"margin {margin} is no multiple of {phase}")
    # Large things are searched in scenes made small: a tile must not grow beyond memory on the scene's side.
    tile = max(stride, min(tile, MOST_SCENE_PIXELS * UNIT // step))
    # Rounded up one after the other: the deep stage must see all of its own reach in what the first made.
    around_own = math.ceil(own / stride / phase) * phase
    around = around_own + math.ceil((reach - own) / stride / phase) * phase
    rows = list(spans(lengths[1], stride, own, margin, tile, align))
    columns = list(spans(lengths[0], stride, around * stride, margin, tile, align))
    places = [(row, column) for column in columns for row in rows]
    apron = apron_of(blur)
    geometry = _Geometry(stride, margin, rows[-1].last, around, around_own, apron)
    known: _Known | None = None
    # One ahead: tiles are large.
    for strip in ahead(_read_ahead(scene, radiometry, step, share(places, part), geometry), 1):
        row, column = strip.row, strip.column
        pixels, valid = to_level(strip.stored, radiometry, engine.device)
        if apron:
            pixels, valid = (p[..., apron:-apron, apron:-apron] for p in (blurred(pixels, blur), valid))
        share_of = valid_share(valid, stride)[strip.first - strip.start :][: strip.last - strip.first]
        found = first_stage(engine, pixels, stage)[:, :, strip.first - strip.start :][:, :, : strip.last - strip.first]
        if strip.goes_on:
            assert known is not None
            share_of, found = torch.cat([known.share, share_of]), torch.cat([known.found, found], dim=2)
        top = geometry.top(row.first)  # of what is known, in cells of the level
        # Copied: views would keep the whole tile in memory.
        kept = geometry.bottom(row.last) - geometry.top(row.last)
        known = _Known(found[:, :, found.shape[2] - kept :].clone(), share_of[len(share_of) - kept :].clone())
        y, x = row.first - top, column.first - column.start // stride
        inside = share_of[y : y + row.last - row.first, x : x + column.last - column.first]
        # Cells on the scene's border are half inside it, whichever way rounding falls.
        cells = inside.numpy() >= min_valid - 1e-3
        if not cells.any():
            continue
        y, x = y - margin, x - margin
        height, width = row.last - row.first + 2 * margin, column.last - column.first + 2 * margin
        shallow = found[0, :, y : y + height, x : x + width]
        further = functools.partial(_deep_of, engine, found, stage, deep) if deep else None
        near = share_of[y : y + height, x : x + width].numpy() >= min_valid - 1e-3
        yield FeatureTile(shallow, further, (y / phase, x / phase), cells, near, column.first, row.first)


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
class _Geometry:
    """Rows of a level, in cells.

    Attributes:
        stride: level pixels of a cell.
        margin: cells wanted on either side of a tile.
        length: cells of the level.
        reach: that the deep stage, or else the first, sees on either side.
        own: that the first stage sees.
        apron: level pixels that are read on all sides of what the network sees, for a blur.
    """

    stride: int
    margin: int
    length: int
    reach: int
    own: int
    apron: int

    def top(self, first: int) -> int:
        """First row of the first stage that a tile needs which answers for this and those below."""
        return max(first - self.margin - self.reach + self.own, -self.margin)

    def bottom(self, last: int) -> int:
        """One past the last row that it needs where it answers for the rows before this."""
        return min(last + self.margin + self.reach - self.own, self.length + self.margin)

    def seen(self, first: int, last: int) -> tuple[int, int]:
        """Rows of the level that the network must see for these. Beyond the scene lies a margin of nothing."""
        return max(first - self.own, -self.margin), min(last + self.own, self.length + self.margin)


@dataclass(frozen=True)
class _Strip:
    """What is read for a tile.

    Attributes:
        row: of the tile.
        column: of the tile.
        stored: pixels from an apron before row ``start`` on.
        start: first row, in cells, that the network sees.
        first: first row that it is to make.
        last: one past the last.
        goes_on: whether the rows before ``first`` are known from the tile above.
    """

    row: Span
    column: Span
    stored: StoredLevel
    start: int
    first: int
    last: int
    goes_on: bool


@dataclass(frozen=True)
class _Known:
    """The last rows of a tile: features ``[1, channels, h, w]`` and valid part ``[h, w]``."""

    found: Tensor
    share: Tensor


def _read_ahead(
    scene: Scene, radiometry: Radiometry, step: int, places: Sequence[tuple[Span, Span]], geometry: _Geometry
) -> Generator[_Strip, None, None]:
    """What tiles (row, column) need, in order; those without a valid pixel left out."""
    above: tuple[Span, Span] | None = None  # the last that was not left out
    valid_to = 0  # one past the last row, of those known, that may hold a valid pixel
    with SceneReader(scene) as reader:
        for row, column in places:
            goes_on = above is not None and above[1] == column and above[0].last == row.first
            first = geometry.bottom(row.first) if goes_on else geometry.top(row.first)
            last = geometry.bottom(row.last)
            if first >= last:
                # The tile above has seen to the scene's end: a little is computed again rather than nothing.
                goes_on, first = False, geometry.top(row.first)
            start, stop = geometry.seen(first, last)
            span = replace(row, start=start * geometry.stride, stop=stop * geometry.stride)
            wide = (replace(s, start=s.start - geometry.apron, stop=s.stop + geometry.apron) for s in (column, span))
            stored = read_stored(reader, radiometry, step, *wide)
            valid = bool(stored.valid.any())
            if valid or (goes_on and valid_to > row.first):
                yield _Strip(row, column, stored, start, first, last, goes_on)
                above, valid_to = (row, column), stop if valid else valid_to
            else:
                above = None
