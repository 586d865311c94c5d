"""Templates matched on the cells that an index keeps: places, sizes and scores without a look at any pixel.

A cell is kept as the signs of its whitened axes (64 bits, at the one size at which its window was seen). Templates stay
numbers: the dot product of a template with signs is as good an estimate of a cosine as is needed, since a template has
thousands of them (Charikar 2002, "Similarity estimation techniques from rounding algorithms").
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from siamese_sat.data.scene import Scene
from siamese_sat.model.backbone import STRIDES
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.dense import FeatureTile
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar, by_class
from siamese_sat.search.index.entry import from_json
from siamese_sat.search.index.features import BITS, FeatureEncoder, middle
from siamese_sat.search.index.question import FILL
from siamese_sat.search.index.store import Store
from siamese_sat.search.ladder import Rung
from siamese_sat.search.level import UNIT
from siamese_sat.search.maps import Maps, Whitenings
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.template import TemplateSearch
from siamese_sat.search.template_settings import check_template_settings

Cells = npt.NDArray[np.int64]
# Cells along the side of what is matched at a time.
TILE = 256
# Cells beyond a window's own in which a thing's middle counts: its neighbour's answer may have been a little too low.
BEYOND = 1
# Places from which the ordinary is learned, for each window size, and how often one is drawn for each.
PLACES, TRIES = 24, 3
# Cells along the side of such a place.
SIDE = 32
# Parts of scenes that are read at a time.
READERS = 8


@dataclass(frozen=True)
class _Part:
    """Answers of one size that lie near each other.

    Attributes:
        scene: in which.
        scale: side of the windows.
        low: first cell, x and y.
        high: one past the last.
        asked: ``[h, w]`` cells where a thing's middle counts.
    """

    scene: Scene
    scale: int
    low: Cells
    high: Cells
    asked: npt.NDArray[np.bool_]


@dataclass
class CellSearch:
    """Search by templates in an index's own cells, round the windows that it answered.

    Attributes:
        method: the settings of templates; its stages are the index's.
        store: the index.
        encoder: as the index was made with.
        hits: by path of the scene, rows with the window's box and ``scale``.
        scales: window sizes at which each class was asked; others (negatives) are sought at all of them.
        seed: of the places from which the ordinary is learned.
    """

    method: TemplateSearch
    store: Store
    encoder: FeatureEncoder
    hits: Mapping[str, pd.DataFrame]
    scales: Mapping[str, Sequence[int]]
    seed: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Levels and sizes are the index's own; in a stage of finer cells a template has more of them.
        cells = max(self.method.cells, math.ceil(FILL * self.encoder.size / STRIDES[self.encoder.stage]) // 2 * 2 + 1)
        self.method = replace(
            self.method, stage=self.encoder.stage, deep=None, sizes_per_level=1, cells=cells, templates=[]
        )
        check_template_settings(self.method)

    @property
    def classes(self) -> list[str]:
        """See `SearchMethod`."""
        return self.method.classes

    @property
    def rerank(self) -> float:
        """See `rerank_of`."""
        return self.method.rerank

    @property
    def sizes(self) -> list[float]:
        """See `sizes_of`."""
        return self.method.sizes

    @property
    def vote_iou(self) -> float:
        """See `vote_iou_of`."""
        return self.method.vote_iou

    @property
    def box_scale(self) -> float:
        """By what factor reported boxes are larger than what they show."""
        return self.method.box_scale

    @property
    def appears(self) -> list[float]:
        """Level pixels of the sizes that are sought in windows of one size: up to half-way to the next."""
        size = self.encoder.size
        windows = sorted(self.encoder.windows)
        # To windows twice as large where there are no others.
        gap = max([2.0, *(b / a for a, b in itertools.pairwise(windows))])
        rungs = int(math.log(gap) / 2 / math.log(self.method.scale_step))
        every = [FILL * size * self.method.scale_step**k for k in range(-rungs, rungs + 1)]
        wide = self.method.cells * self._cell
        return [a for a in every if 2 * self._cell <= a <= wide] or [min(FILL * size, wide)]

    def prepare(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        radiometry_of: RadiometryOf,
        scenes: Sequence[Scene],
    ) -> None:
        """See `SearchMethod`; what is ordinary is learned from the index, not from ``scenes``."""
        assert self.encoder.whitening is not None
        entries = self.store.scenes()
        self.numbers = dict(zip(entries.path, entries.scene, strict=True))
        method = self.method
        method.model, method.engine, method.radiometry_of = model, engine, radiometry_of
        method.whitening = Whitenings(self.encoder.whitening.cells, None, 1)
        groups = by_class(exemplars)
        every = sorted({scale for scales in self.scales.values() for scale in scales})
        rungs = {
            name: [Rung(self._step(scale), a) for scale in self.scales.get(name, every) for a in self.appears]
            for name in groups
        }
        background = [one for scale in every for one in self._background(entries, scale)]
        method.make(groups, rungs, background, _signs)

    def on_scale(self, number: int, found: Candidates) -> npt.NDArray[np.float64]:
        """See `OwnScales`."""
        return self.method.on_scale(number, found)

    def windows(self, scene: Scene) -> dict[str, int]:
        """See `SearchMethod`."""
        hits = self.hits.get(scene.path)
        count = (len(hits) if hits is not None else 0) * self._block**2 * len(self.appears)
        return dict.fromkeys(self.classes, count)

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """See `SearchMethod`."""
        for part in self._parts(scene):
            yield from self._matched(part, self._around(part), thresholds)

    def candidates_of(
        self, scenes: Mapping[str, Scene], thresholds: Mapping[str, float]
    ) -> Iterator[tuple[str, Candidates]]:
        """See `ManyScenes`; cells of the next scenes are read meanwhile, for each reading takes its time."""
        parts = {name: self._parts(scene) for name, scene in scenes.items()}
        with ThreadPoolExecutor(READERS) as readers:
            asked = iter([part for some in parts.values() for part in some])
            waiting = deque(readers.submit(self._around, part) for part in itertools.islice(asked, 2 * READERS))
            for name, some in parts.items():
                found: list[Candidates] = []
                for part in some:
                    cells = waiting.popleft().result()
                    waiting.extend(readers.submit(self._around, more) for more in itertools.islice(asked, 1))
                    found += self._matched(part, cells, thresholds)
                yield name, Candidates.join(found)

    def _parts(self, scene: Scene) -> list[_Part]:
        """Where a scene's answers lie, part by part."""
        hits = self.hits.get(scene.path)
        found: list[_Part] = []
        for scale, mine in hits.groupby("scale") if hits is not None else ():
            side = int(str(scale))
            first = self._first_cells(scene, side, mine[["x_min", "y_min"]].to_numpy(float)) + self._middle - BEYOND
            wide = self._block + 2 * BEYOND
            for some in _near(first):
                # The coarse grid begins at even cells.
                low = np.maximum(some.min(axis=0), 0) // 2 * 2
                high = np.minimum(some.max(axis=0) + wide, self._counts(scene, side))
                if (high > low).all():
                    asked = np.zeros((high - low)[::-1], bool)
                    for x, y in np.maximum(some - low, 0):
                        asked[y : y + wide, x : x + wide] = True
                    found.append(_Part(scene, side, low, high, asked))
        return found

    def _around(self, part: _Part) -> Tensor:
        """The cells of a part, with a margin on all sides."""
        return self._map(part.scene, part.scale, part.low - self.method.margin, part.high + self.method.margin)

    def _matched(self, part: _Part, cells: Tensor, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        margin = self.method.margin
        known = cells.ne(0).any(0).cpu().numpy()
        valid = part.asked & known[margin:-margin, margin:-margin]
        if valid.any():
            tile = FeatureTile(cells, None, (0.0, 0.0), valid, known, int(part.low[0]), int(part.low[1]))
            yield from self.method.match(part.scene, self._step(part.scale), tile, Maps(cells, None), thresholds)

    @property
    def _cell(self) -> int:
        """Level pixels of a cell."""
        return STRIDES[self.encoder.stage]

    @property
    def _block(self) -> int:
        """Cells along a side that a window keeps."""
        return self.encoder.stride // self._cell

    @property
    def _middle(self) -> int:
        return middle(self.encoder.size, self.encoder.stride, self._cell)

    def _step(self, scale: int) -> int:
        return UNIT * scale // self.encoder.size

    def _pixels(self, scale: int) -> float:
        """Scene pixels of a cell."""
        return scale / self.encoder.size * self._cell

    def _first_cells(self, scene: Scene, scale: int, corners: npt.NDArray[np.float64]) -> Cells:
        """First cells ``[n, 2]`` (x, y) of windows that begin at these pixels."""
        found: Cells = np.rint((corners - np.array(scene.aoi[:2])) / self._pixels(scale)).astype(np.int64)
        return found

    def _counts(self, scene: Scene, scale: int) -> Cells:
        """Cells of a scene (x, y) at one size of windows."""
        x0, y0, x1, y1 = scene.aoi
        found: Cells = np.ceil(np.array([x1 - x0, y1 - y0]) / self._pixels(scale)).astype(np.int64)
        return found

    def _map(self, scene: Scene, scale: int, low: Cells, high: Cells) -> Tensor:
        """Cells ``[BITS, h, w]`` from ``low`` to ``high`` (x, y): 1 and -1, and 0 where none are kept."""
        block, pixels, middle_ = self._block, self._pixels(scale), self._middle
        origin = np.array(scene.aoi[:2], float)
        # Windows whose middle lies in it, or begins before it.
        x0, y0 = origin + (low - middle_ - block + 0.5) * pixels
        x1, y1 = origin + (high - middle_ - 0.5) * pixels + scale
        box = (float(x0), float(y0), float(x1), float(y1))
        corners, kept = self.store.cells(self.numbers[scene.path], scale, box)
        width, height = (high - low + 2 * block).tolist()
        found = np.zeros((height, width, BITS), np.float32)
        if len(kept):
            first = self._first_cells(scene, scale, corners) + middle_ - low + block
            bits = np.unpackbits(kept, axis=1).reshape(len(kept), block, block, BITS)
            along = np.arange(block)
            rows = (first[:, 1, None] + along)[:, :, None]
            columns = (first[:, 0, None] + along)[:, None, :]
            found[rows, columns] = bits * 2.0 - 1.0
        inner = np.ascontiguousarray(found[block : height - block, block : width - block])
        return torch.from_numpy(inner).to(self.method.engine.device).permute(2, 0, 1)

    def _background(self, entries: pd.DataFrame, scale: int) -> list[tuple[Maps, int]]:
        """Random places of the archive as windows of one size show them, each with the step of their level.

        Where scenes are too small for it, places as the next size shows them: a cell is a cell.
        """
        entries = entries[entries.windows > 0]
        for size in sorted(self.encoder.windows, key=lambda w: abs(math.log(w / scale))):
            found = list(itertools.islice(self._places(entries, size), PLACES))
            if found:
                return [(maps, self._step(scale)) for maps in found]
        return []

    def _places(self, entries: pd.DataFrame, scale: int) -> Iterator[Maps]:
        rng = np.random.default_rng(self.seed)
        share = entries.windows.to_numpy(float)
        for number in rng.choice(len(entries), PLACES * TRIES, p=share / share.sum()) if len(entries) else ():
            scene = from_json(str(entries.about.iloc[number]))
            # At the border no window has its middle.
            counts = self._counts(scene, scale) - 2 * self._middle
            low = self._middle + np.array([int(rng.integers(0, max(1, n - SIDE))) for n in counts])
            high = np.minimum(low + SIDE, counts + self._middle)
            if (high - low).min() > 2 * self.method.margin:
                cells = self._map(scene, scale, low, high)
                if bool(cells.ne(0).any(0).all()):
                    yield Maps(cells, None)


def _signs(cells: Tensor) -> Tensor:
    """What is kept of whitened cells; where they are all 0 nothing is."""
    return torch.where(cells > 0, 1.0, -1.0) * (cells != 0).any(dim=1, keepdim=True)


def _near(first: Cells) -> Iterator[Cells]:
    """Windows' first cells ``[n, 2]`` in groups that lie in the same part of the scene."""
    parts = first // TILE
    _, which = np.unique(parts, axis=0, return_inverse=True)
    which = which.ravel()
    for number in range(which.max() + 1 if len(which) else 0):
        yield first[which == number]
