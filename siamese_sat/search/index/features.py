"""Windows as features: the backbone sees the scene once, densely, and windows are made of its cells.

A cell, whitened by what is ordinary in the archive, finds things that no training saw. A window's vector is the means
over three by three parts of it, which say where in the window its things lie, whitened again. Beside it stand the cells
of its middle as bits: where things are and how large is found by them without a look at any pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.augment import VIEWS, dihedral
from siamese_sat.data.chip import ChipSpec, cut_chip
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STRIDES
from siamese_sat.search import window as grid
from siamese_sat.search.background import SEEN
from siamese_sat.search.dense import first_stage, spans
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.index.encoder import Encoded, need_valid
from siamese_sat.search.level import UNIT, Span, read_level, valid_share
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.part import Part, share
from siamese_sat.search.whiten import Whitening, fit_whitening

# Level pixels of a tile; more would win nothing.
TILE = 1024
# Windows along a side of a place from which the background is learned.
SAMPLE = 11
# Parts of a window along a side, over which its cells are averaged.
GRID = 3
# Bits of a cell.
BITS = 64
# Of cells, as of templates'.
CELL_SHRINKAGE = 0.1


@dataclass(frozen=True)
class Whitenings:
    """What makes a window's vector and bits of its cells.

    Attributes:
        cells: ``[C]`` to ``[B]``, turned so that no axis says more than another.
        windows: ``[GRID * GRID * B]`` to ``[D]``.
    """

    cells: Whitening
    windows: Whitening


@dataclass(frozen=True)
class FeatureEncoder:
    """Cells of a backbone stage, computed once densely.

    Attributes:
        engine: runs the backbone up to the stage.
        windows: sides in scene pixels.
        size: level pixels of a window.
        stride: of these pixels, between windows; a whole number of the stage's cells.
        stage: of the backbone.
        whitening: of cells and windows; None while it is to be fitted.
    """

    engine: Engine
    windows: Sequence[int]
    size: int
    stride: int
    stage: str
    whitening: Whitenings | None = None

    def __post_init__(self) -> None:
        cell = STRIDES[self.stage]
        if self.stride % cell or self.size % cell or not 0 < self.stride <= self.size:
            raise InputError(
                f"indexing.stride={self.stride} must be a multiple of {cell} from {cell} to {self.size}, the chip "
                f"size: the cells of {self.stage} are {cell} pixels wide."
            )

    def scene(self, scene: Scene, radiometry: Radiometry, part: Part = (0, 1)) -> Iterator[Encoded]:
        """See `Encoder`."""
        cell = STRIDES[self.stage]
        x0, y0, x1, y1 = scene.aoi
        reach = self.engine.embedder.backbone.reach(self.stage)
        with SceneReader(scene) as reader:
            for side in self.windows:
                # Whole cells; the last window may show a little of what lies beyond the scene.
                lengths = [math.ceil(grid.level_length(n, side, self.size) / cell) * cell for n in (x1 - x0, y1 - y0)]
                places = [grid.places(length, self.size, self.stride) for length in lengths]
                # A tile's windows reach as many cells beyond it as a window has.
                columns, rows = (list(spans(n, cell, reach, self.size // cell, TILE)) for n in lengths)
                for row, column in share(list(itertools.product(rows, columns)), part):
                    y = places[1][(places[1] >= row.first * cell) & (places[1] < row.last * cell)]
                    x = places[0][(places[0] >= column.first * cell) & (places[0] < column.last * cell)]
                    if len(x) and len(y):
                        found = self._tile(reader, radiometry, side, column, row, x, y)
                        if found is not None:
                            yield found

    def exemplar(self, exemplar: Exemplar, radiometry: Radiometry, side: float) -> npt.NDArray[np.float32]:
        """See `Encoder`."""
        cell = STRIDES[self.stage]
        # A cell more on all sides: windows that stand an eighth off the middle are parts of the same map.
        off = max(1, self.size // 8 // cell)
        around = math.ceil(min(SEEN * cell, self.engine.embedder.backbone.reach(self.stage)) / cell) * cell + off * cell
        # Cell i is centred on pixel i * cell: the window lies from the first inner cell to the last.
        wide = self.size + 1 + 2 * around
        x0, y0, x1, y1 = exemplar.box
        cx, cy, half = (x0 + x1) / 2, (y0 + y1) / 2, wide * side / self.size / 2
        with SceneReader(exemplar.scene) as reader:
            box = (cx - half, cy - half, cx + half, cy + half)
            chip, valid = cut_chip(reader, box, ChipSpec(wide, 0.0, "square"), radiometry)
        need_valid(exemplar, valid)
        level = radiometry.normalise(chip).to(self.engine.device)
        views = torch.stack([dihedral(level[None], view)[0] for view in range(VIEWS)])
        found = first_stage(self.engine, views, self.stage)
        first, count = around // cell, self.size // cell + 1
        places = torch.tensor([first, first - off, first + off], device=found.device)
        vectors = []
        for one in found:
            grid_of = _gridded(self._cells(one), places, places, count)
            # In the middle, and off it towards the corners.
            vectors += [grid_of[:, y, x] for y, x in ((0, 0), (1, 1), (1, 2), (2, 1), (2, 2))]
        return self._vectors(torch.stack(vectors))

    def fit(
        self,
        scenes: Sequence[Scene],
        radiometry_of: RadiometryOf,
        dimensions: int,
        shrinkage: float,
        samples: int = 32,
        seed: int = 0,
    ) -> Whitenings:
        """Learns what is ordinary in an archive from random places of its scenes, each at one of the window sizes.

        Args:
            scenes: of the archive, or many of them.
            radiometry_of: normalises each.
            dimensions: of a vector.
            shrinkage: of the windows' whitening, see `fit_whitening`.
            samples: places, of some hundred windows each.
            seed: of the places.

        Raises:
            InputError: nothing valid was met.
        """
        seen = list(self._samples(scenes, radiometry_of, samples, seed))
        valid = (one.features[:, one.good][:, :, None].float() for one in seen)
        cells = fit_whitening(valid, BITS, CELL_SHRINKAGE)
        turn = torch.linalg.qr(torch.randn(BITS, BITS, generator=torch.Generator().manual_seed(seed)))[0]
        axes = torch.zeros(len(cells.axes), BITS, device=cells.axes.device)
        axes[:, : cells.axes.shape[1]] = cells.axes  # no more than the stage has channels
        cells = Whitening(cells.mean, axes @ turn.to(axes.device))
        count = self.size // STRIDES[self.stage] + 1
        pooled = (_gridded(cells(one.features), one.tops, one.lefts, count)[:, one.keep] for one in seen)
        return Whitenings(cells, fit_whitening((one[:, :, None] for one in pooled), dimensions, shrinkage))

    def _samples(
        self, scenes: Sequence[Scene], radiometry_of: RadiometryOf, samples: int, seed: int
    ) -> Iterator[_Seen]:
        rng = np.random.default_rng(seed)
        cell = STRIDES[self.stage]
        around = math.ceil(self.engine.embedder.backbone.reach(self.stage) / cell) * cell
        areas = np.array([s.megapixels for s in scenes])
        for number in np.sort(rng.choice(len(scenes), samples, p=areas / areas.sum())):
            scene, side = scenes[number], int(rng.choice(self.windows))
            x0, y0, x1, y1 = scene.aoi
            axes = []
            for length in (x1 - x0, y1 - y0):
                level = grid.level_length(length, side, self.size)
                count = min(SAMPLE, max(1, (level - self.size) // self.stride + 1))
                spare = max(0, level - self.size - (count - 1) * self.stride)
                first = int(rng.integers(0, spare + 1)) // cell * cell
                places = first + np.arange(count) * self.stride
                stop = int(places[-1]) + self.size + cell + around
                axes.append((Span(0, 0, 0, first - around, stop), places))
            with SceneReader(scene) as reader:
                found = self._seen(reader, radiometry_of(scene), side, axes[0][0], axes[1][0], axes[0][1], axes[1][1])
            if found is not None:
                yield found

    def _seen(
        self,
        reader: SceneReader,
        radiometry: Radiometry,
        side: int,
        column: Span,
        row: Span,
        x: npt.NDArray[np.int64],
        y: npt.NDArray[np.int64],
    ) -> _Seen | None:
        """The windows of a tile that begin at these level pixels, or None where too little is valid."""
        cell = STRIDES[self.stage]
        pixels, mask = read_level(reader, radiometry, UNIT * side // self.size, column, row, self.engine.device)
        valid = _valid(mask, y - row.start, x - column.start, self.size)
        keep = valid >= self.engine.min_valid - 1e-3
        if not keep.any():
            return None
        found = first_stage(self.engine, pixels, self.stage)[0]
        tops, lefts = ((torch.from_numpy(n) // cell).to(found.device) for n in (y - row.start, x - column.start))
        # Those in the windows that lie on the scene, and not what was seen round them.
        good = torch.zeros(found.shape[1:], dtype=torch.bool)
        inner = np.s_[y[0] // cell - row.start // cell :, x[0] // cell - column.start // cell :]
        count = self.size // cell + 1
        height, width = int(y[-1] - y[0]) // cell + count, int(x[-1] - x[0]) // cell + count
        share_of = valid_share(mask, cell)[: found.shape[1], : found.shape[2]]
        good[inner][:height, :width] = (share_of[inner] >= self.engine.min_valid - 1e-3)[:height, :width]
        where = torch.from_numpy(keep).to(found.device)
        return _Seen(found, tops, lefts, where, valid, good.to(found.device))

    def _tile(
        self,
        reader: SceneReader,
        radiometry: Radiometry,
        side: int,
        column: Span,
        row: Span,
        x: npt.NDArray[np.int64],
        y: npt.NDArray[np.int64],
    ) -> Encoded | None:
        seen = self._seen(reader, radiometry, side, column, row, x, y)
        if seen is None:
            return None
        cells, count = self._cells(seen.features), self.size // STRIDES[self.stage] + 1
        vectors = _gridded(cells, seen.tops, seen.lefts, count)[:, seen.keep].T
        block = self.stride // STRIDES[self.stage]
        first = middle(self.size, self.stride, STRIDES[self.stage])
        bits = _blocks(cells > 0, seen.tops + first, seen.lefts + first, block)[seen.keep]
        where = seen.keep.ravel().cpu().numpy()
        return Encoded(
            grid.boxes(x, y, (side, side), self.size, reader.scene.aoi[:2])[where],
            seen.valid.ravel()[where].clip(0, 1),
            self._vectors(vectors),
            side,
            np.packbits(bits.flatten(1).cpu().numpy(), axis=1),
        )

    def _cells(self, features: Tensor) -> Tensor:
        """A stage's features ``[C, h, w]`` to whitened cells ``[B, h, w]``."""
        assert self.whitening is not None
        return self.whitening.cells(features)

    def _vectors(self, pooled: Tensor) -> npt.NDArray[np.float32]:
        """Windows' parts ``[n, GRID * GRID * B]`` to vectors ``[n, D]`` of unit length."""
        assert self.whitening is not None
        white = self.whitening.windows(pooled.T[:, :, None])[:, :, 0].T
        return F.normalize(white, dim=1).cpu().numpy()


@dataclass(frozen=True)
class _Seen:
    """A tile's features ``[C, h, w]``, as the network has them, its windows' first cells and valid parts.

    ``good`` says which cells ``[h, w]`` lie in windows and on valid pixels.
    """

    features: Tensor
    tops: Tensor
    lefts: Tensor
    keep: Tensor
    valid: npt.NDArray[np.float64]
    good: Tensor


def middle(size: int, stride: int, cell: int) -> int:
    """First of a window's cells, along a side, of the block in its middle that is as wide as the windows' stride."""
    return (size // cell + 1 - stride // cell) // 2


def _valid(
    mask: Tensor, tops: npt.NDArray[np.int64], lefts: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.float64]:
    """Means ``[len(tops), len(lefts)]`` of a mask ``[h, w]`` over squares that begin at these pixels."""
    total = F.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0)).numpy()
    rows = total[tops + size] - total[tops]
    return np.asarray((rows[:, lefts + size] - rows[:, lefts]) / size**2)


def _gridded(cells: Tensor, tops: Tensor, lefts: Tensor, count: int) -> Tensor:
    """Means ``[GRID * GRID * B, len(tops), len(lefts)]`` over parts of windows of ``count`` cells a side."""
    borders = [round(i * count / GRID) for i in range(GRID + 1)]
    parts = list(itertools.pairwise(borders))
    found = []
    for top, bottom in parts:
        # Rows first, and only those that are asked for: pooling everywhere would cost as much as the network.
        rows = F.avg_pool2d(cells[None], (bottom - top, 1), stride=1)[0].index_select(1, tops + top)
        found += [
            F.avg_pool2d(rows[None], (1, right - left), stride=1)[0].index_select(2, lefts + left)
            for left, right in parts
        ]
    return torch.cat(found)


def _blocks(bits: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """Blocks ``[len(tops), len(lefts), size, size, B]`` of a map ``[B, h, w]``."""
    offset = torch.arange(size, device=bits.device)
    rows = (tops[:, None] + offset)[:, None, :, None]
    columns = (lefts[:, None] + offset)[None, :, None, :]
    return bits.permute(1, 2, 0)[rows, columns]
