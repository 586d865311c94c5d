"""Windows as pooled features: the backbone sees the scene once, densely, and windows are means of its cells.

Whitened by what is ordinary in the archive, pooled cells find things that no training saw.
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
from siamese_sat.search.dense import features, spans
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.index.encoder import Encoded, need_valid, shifted
from siamese_sat.search.level import UNIT, Span, read_level
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.part import Part, share
from siamese_sat.search.whiten import Whitening, fit_whitening

# Level pixels of a tile; more would win nothing.
TILE = 1024
# Windows along a side of a place from which the background is learned.
SAMPLE = 11


@dataclass(frozen=True)
class FeatureEncoder:
    """Cells of a backbone stage, computed once densely, pooled over each window and whitened.

    Attributes:
        engine: runs the backbone up to the stage.
        windows: sides in scene pixels.
        size: level pixels of a window.
        stride: of these pixels, between windows; a whole number of the stage's cells.
        stage: of the backbone.
        whitening: of pooled cells; None gives them bare, to fit one.
    """

    engine: Engine
    windows: Sequence[int]
    size: int
    stride: int
    stage: str
    whitening: Whitening | None = None

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

    def exemplar(self, exemplar: Exemplar, radiometry: Radiometry, scale: int) -> npt.NDArray[np.float32]:
        """See `Encoder`."""
        cell = STRIDES[self.stage]
        around = math.ceil(self.engine.embedder.backbone.reach(self.stage) / cell) * cell
        side = self.size + cell + 2 * around  # the window, its last cell's centre, and what its cells see
        spec = ChipSpec(side, 0.0, "square")
        inner = slice(around // cell, around // cell + self.size // cell + 1)
        found, best = [], 0.0
        with SceneReader(exemplar.scene) as reader:
            for x0, y0, x1, y1 in shifted(exemplar, scale):
                # Cell i is centred on pixel i * cell: the window lies from the first inner cell to the last.
                ratio = scale / self.size
                low, high = around * ratio, (around + cell) * ratio
                box = (x0 - low, y0 - low, x1 + high, y1 + high)
                chip, valid = cut_chip(reader, box, spec, radiometry)
                best = max(best, valid)
                level = radiometry.normalise(chip).to(self.engine.device)
                for view in range(VIEWS):
                    # Turned about the window's middle: the last row and column have no partner on the other side.
                    turned = dihedral(level[None, :, : side - cell + 1, : side - cell + 1], view)[0]
                    cells = features(self.engine, turned, self.stage)[:, inner, inner]
                    found.append(F.normalize(cells, dim=0).mean(dim=(1, 2)))
        need_valid(exemplar, best)
        return self._white(torch.stack(found))

    def fit(
        self,
        scenes: Sequence[Scene],
        radiometry_of: RadiometryOf,
        dimensions: int,
        shrinkage: float,
        samples: int = 32,
        seed: int = 0,
    ) -> Whitening:
        """Learns what is ordinary in an archive from random places of its scenes, each at one of the window sizes.

        Args:
            scenes: of the archive, or many of them.
            radiometry_of: normalises each.
            dimensions: of a vector.
            shrinkage: see `fit_whitening`.
            samples: places, of some hundred windows each.
            seed: of the places.

        Raises:
            InputError: nothing valid was met.
        """
        return fit_whitening(
            (
                torch.from_numpy(one.vectors.T[:, :, None])
                for one in self._samples(scenes, radiometry_of, samples, seed)
            ),
            dimensions,
            shrinkage,
        )

    def _samples(
        self, scenes: Sequence[Scene], radiometry_of: RadiometryOf, samples: int, seed: int
    ) -> Iterator[Encoded]:
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
                found = self._tile(reader, radiometry_of(scene), side, axes[0][0], axes[1][0], axes[0][1], axes[1][1])
            if found is not None:
                yield found

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
        """The windows of a tile that begin at these level pixels, or None where too little is valid."""
        cell, cells = STRIDES[self.stage], self.size // STRIDES[self.stage]
        pixels, mask = read_level(reader, radiometry, UNIT * side // self.size, column, row, self.engine.device)
        tops, lefts = torch.from_numpy(y - row.start) // cell, torch.from_numpy(x - column.start) // cell
        valid = _valid(mask, y - row.start, x - column.start, self.size)
        keep = valid >= self.engine.min_valid - 1e-3
        if not keep.any():
            return None
        found = F.normalize(features(self.engine, pixels, self.stage), dim=0)
        pooled = _pooled(found, tops.to(found.device), lefts.to(found.device), cells)
        boxes = grid.boxes(x, y, (side, side), self.size, reader.scene.aoi[:2])
        where = keep.ravel()
        vectors = pooled.flatten(1).T[torch.from_numpy(where).to(pooled.device)]
        return Encoded(boxes[where], valid.ravel()[where].clip(0, 1), self._white(vectors), side)

    def _white(self, pooled: Tensor) -> npt.NDArray[np.float32]:
        """Pooled cells ``[n, C]`` to vectors ``[n, D]`` of unit length."""
        if self.whitening is not None:
            pooled = self.whitening(pooled.T[:, :, None])[:, :, 0].T
        return F.normalize(pooled, dim=1).cpu().numpy()


def _valid(
    mask: Tensor, tops: npt.NDArray[np.int64], lefts: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.float64]:
    """Means ``[len(tops), len(lefts)]`` of a mask ``[h, w]`` over squares that begin at these pixels."""
    total = F.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0)).numpy()
    rows = total[tops + size] - total[tops]
    return np.asarray((rows[:, lefts + size] - rows[:, lefts]) / size**2)


def _pooled(cells: Tensor, tops: Tensor, lefts: Tensor, count: int) -> Tensor:
    """Means ``[C, len(tops), len(lefts)]`` of ``count + 1`` cells a side: from a window's first pixel to its last."""
    # Rows first, and only those that are asked for: pooling everywhere would cost as much as the network.
    rows = F.avg_pool2d(cells[None], (count + 1, 1), stride=1)[0].index_select(1, tops)
    return F.avg_pool2d(rows[None], (1, count + 1), stride=1)[0].index_select(2, lefts)
