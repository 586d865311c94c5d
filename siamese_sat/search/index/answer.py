"""Answers of an index as ways of searching, so that suppression, output and evaluation are those of any search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from siamese_sat.data.scene import Scene
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.method import RadiometryOf, SearchMethod, rerank_of, sizes_of, vote_iou_of
from siamese_sat.search.part import Part, share

Boxes = npt.NDArray[np.float64]
# How far from a window's middle, beyond what the grid leaves open, the thing's own may lie, of its longer side.
OFFSET = 0.125
# What a method computes round all that it is given, of the longer side of a thing, about: a template's half and more.
AROUND = 1.3


@dataclass
class Remembered:
    """What the index answered, without a look at any pixel.

    Attributes:
        names: of the classes, in the order of their numbers.
        hits: by path of the scene, rows with the window's box, ``class``, ``width``, ``height`` and ``score``.
        counts: windows of a scene that were compared, by path.
    """

    names: Sequence[str]
    hits: Mapping[str, pd.DataFrame]
    counts: Mapping[str, int]

    @property
    def classes(self) -> list[str]:
        """See `SearchMethod`."""
        return list(self.names)

    def prepare(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        radiometry_of: RadiometryOf,
        scenes: Sequence[Scene],
    ) -> None:
        """Has been asked already."""

    def windows(self, scene: Scene) -> dict[str, int]:
        """See `SearchMethod`."""
        return dict.fromkeys(self.names, self.counts.get(scene.path, 0))

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """See `SearchMethod`; the box is as large as the exemplars, in the middle of the window."""
        hits = self.hits.get(scene.path)
        if hits is None or hits.empty:
            return
        least = np.array([thresholds[n] for n in self.names])[hits["class"].to_numpy(int)]
        hits = hits[hits.score.to_numpy(float) >= least]
        regions = hits[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
        centre, half = (regions[:, :2] + regions[:, 2:]) / 2, hits[["width", "height"]].to_numpy(float) / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)
        yield Candidates(boxes, regions, hits["class"].to_numpy(np.int64), hits.score.to_numpy(np.float64))


@dataclass(frozen=True)
class Places:
    """Parts of a scene to look at.

    Attributes:
        read: ``[n, 4]`` pixels that the method is given.
        answer: ``[n, 4]`` of these, where a thing's middle counts.
    """

    read: Boxes
    answer: Boxes


@dataclass
class Verified:
    """Another method, given only the surroundings of what the index answered.

    Attributes:
        method: that looks at the pixels.
        places: by path of the scene.
    """

    method: SearchMethod
    places: Mapping[str, Places]
    looked: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """See `SearchMethod`."""
        return self.method.classes

    @property
    def rerank(self) -> float:
        """See `rerank_of`."""
        return rerank_of(self.method)

    @property
    def sizes(self) -> Sequence[float] | None:
        """See `sizes_of`."""
        return sizes_of(self.method)

    @property
    def vote_iou(self) -> float:
        """See `vote_iou_of`."""
        return vote_iou_of(self.method)

    def prepare(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        radiometry_of: RadiometryOf,
        scenes: Sequence[Scene],
    ) -> None:
        """See `SearchMethod`."""
        self.method.prepare(model, engine, exemplars, radiometry_of, scenes)

    def windows(self, scene: Scene) -> dict[str, int]:
        """See `SearchMethod`."""
        found = dict.fromkeys(self.classes, 0)
        for read in self._read(scene):
            for name, count in self.method.windows(scene.within(read.tolist())).items():
                found[name] += count
        return found

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """See `SearchMethod`."""
        yield from self.some(scene, thresholds, (0, 1))

    def whole(self, found: Candidates, thresholds: Mapping[str, float]) -> Candidates:
        """See `Divisible`."""
        return found

    def some(self, scene: Scene, thresholds: Mapping[str, float], part: Part) -> Iterator[Candidates]:
        """See `Divisible`; each place is looked at by one."""
        x0, y0, x1, y1 = scene.aoi
        places = self.places.get(scene.path)
        for number, read in share(list(enumerate(self._read(scene))), part):
            answer = places.answer[number] if places is not None else read
            # On the scene's own border nothing lies beyond.
            low = np.where(answer[:2] <= [x0, y0], -np.inf, answer[:2])
            high = np.where(answer[2:] >= [x1, y1], np.inf, answer[2:])
            for found in self.method.candidates(scene.within(read.tolist()), thresholds):
                centre = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
                inside = (centre >= low) & (centre <= high)
                # So small a part of the scene does not show what lies round them.
                yield replace(found.at(np.asarray(inside.all(axis=1))), surroundings=None)

    def _read(self, scene: Scene) -> Boxes:
        places = self.places.get(scene.path)
        return places.read if places is not None else np.empty((0, 4))


def surroundings(hits: pd.DataFrame, aoi: tuple[int, int, int, int], margin: float = 0.5) -> Places:
    """What must be looked at to verify windows of one scene; what overlaps is looked at together.

    Args:
        hits: rows with the window's box, ``scale``, ``width`` and ``height`` of the thing.
        aoi: of the scene; what lies outside is left out.
        margin: what is seen beyond where a thing's middle may lie, of its longer side. What lies further off is nothing
            to the method: less is faster, and scores differ more from those of the whole scene.
    """
    boxes = hits[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
    longer = hits[["width", "height"]].to_numpy(float).max(axis=1)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    # A thing may lie a quarter of the window, half of its stride, off the middle.
    half = (hits.scale.to_numpy(float) / 4 + OFFSET * longer)[:, None]
    answer = np.concatenate([centre - half, centre + half], axis=1)
    seen = answer + (margin * longer)[:, None] * np.array([-1, -1, 1, 1])
    limits = np.array([*aoi[:2], *aoi[:2]]), np.array([*aoi[2:], *aoi[2:]])
    groups = _gather(seen + (AROUND * longer)[:, None] * np.array([-1, -1, 1, 1]))
    read = [np.concatenate([seen[g, :2].min(0), seen[g, 2:].max(0)]) for g in groups]
    inner = [np.concatenate([answer[g, :2].min(0), answer[g, 2:].max(0)]) for g in groups]
    whole = np.array(read).reshape(-1, 4)
    rounded = np.concatenate([np.floor(whole[:, :2]), np.ceil(whole[:, 2:])], axis=1)
    return Places(rounded.clip(*limits), np.array(inner).reshape(-1, 4).clip(*limits))


def _gather(boxes: Boxes) -> list[list[int]]:
    """Groups of boxes of which one box round all costs no more than each on its own."""
    groups = [[int(i)] for i in np.lexsort((boxes[:, 0], boxes[:, 1]))]
    around = np.array([boxes[g[0]] for g in groups]).reshape(-1, 4)
    current = 0
    while current < len(groups):
        one = around[current]
        both = np.concatenate([np.minimum(around[:, :2], one[:2]), np.maximum(around[:, 2:], one[2:])], axis=1)
        saved = _area(around) + _area(one[None]) - _area(both)
        saved[current] = -np.inf
        best = int(saved.argmax())
        if saved[best] < 0:
            current += 1
            continue
        groups[current] += groups[best]
        around[current] = both[best]
        del groups[best]
        around = np.delete(around, best, axis=0)
        current = 0 if best < current else current  # it may now be worth its while for those before
    return groups


def _area(boxes: Boxes) -> npt.NDArray[np.float64]:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
