"""Like these, unlike those: negative exemplars, searched for as classes of their own, lower the scores beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

from siamese_sat.data.scene import PixelBox, Scene
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import NEGATIVE, Exemplar
from siamese_sat.search.index.entry import scene_path
from siamese_sat.search.method import (
    Divisible,
    RadiometryOf,
    SearchMethod,
    on_scale_of,
    rerank_of,
    sizes_of,
    vote_iou_of,
)
from siamese_sat.search.part import Part
from siamese_sat.search.rerank import FLOOR

# Overlap from which a negative speaks of the same place.
SAME = 0.3
# Of a negative's score; what is lower takes nothing away that shows.
LEAST = 0.05


@dataclass
class Unlike:
    """A method whose scores p are p * p / n where n, that of the likest negative at the same place, is more than p.

    Where a place resembles the exemplars as much as the negatives or more, p stays: a few negatives resemble what is
    sought too, or they would not have been mistaken for it. Both are measured on one scale, that of the exemplars.
    Where a negative itself lies, `FLOOR` is left: so it still tells re-ranking what is wrong.

    Attributes:
        method: that searches.
        negatives: of a class by its name, or of all where their name is no class.
        against: numbers of the negatives' classes by that of the class that they are held against.
        marked: boxes of negatives, and numbers of the classes that none of them is, by path of their scene.
    """

    method: SearchMethod
    negatives: Sequence[Exemplar]
    against: dict[int, list[int]] = field(default_factory=dict)
    marked: dict[str, list[tuple[PixelBox, list[int]]]] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """See `SearchMethod`."""
        return [name for name in self.method.classes if not name.startswith(NEGATIVE)]

    @property
    def box_scale(self) -> float:
        """By what factor reported boxes are larger than what they show."""
        return float(getattr(self.method, "box_scale", 1.0))

    @property
    def rerank(self) -> float:
        """See `rerank_of`."""
        return rerank_of(self.method)

    @property
    def sizes(self) -> Sequence[float] | None:
        """See `sizes_of`."""
        sizes = sizes_of(self.method)
        if sizes is None:
            return None
        known = dict(zip(self.method.classes, sizes, strict=True))
        return [known[name] for name in self.classes]

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
        """See `SearchMethod`.

        Raises:
            InputError: there are negatives only.
        """
        if not exemplars:
            raise InputError("Negatives alone say nothing; give exemplars too.")
        marked = [replace(e, class_name=f"{NEGATIVE}{e.class_name}") for e in self.negatives]
        self.method.prepare(model, engine, [*exemplars, *marked], radiometry_of, scenes)
        names = self.method.classes
        mine = self.classes
        self.against.clear()
        self.marked.clear()
        for number, name in enumerate(names):
            if name.startswith(NEGATIVE):
                of = name.removeprefix(NEGATIVE)
                positives = [names.index(positive) for positive in ([of] if of in mine else mine)]
                for positive in positives:
                    self.against.setdefault(positive, []).append(number)
                for negative in self.negatives:
                    if negative.class_name == of:
                        self.marked.setdefault(scene_path(negative.scene.path), []).append((negative.box, positives))
        self.numbers = {names.index(name): i for i, name in enumerate(mine)}

    def windows(self, scene: Scene) -> dict[str, int]:
        """See `SearchMethod`."""
        counts = self.method.windows(scene)
        return {name: counts[name] for name in self.classes}

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """See `SearchMethod`."""
        yield self.whole(Candidates.join(list(self.some(scene, thresholds, (0, 1)))).told, thresholds)

    def some(self, scene: Scene, thresholds: Mapping[str, float], part: Part) -> Iterator[Candidates]:
        """See `Divisible`; the negatives' places are among them."""
        least = {n: LEAST if n.startswith(NEGATIVE) else thresholds[n] for n in self.method.classes}
        if isinstance(self.method, Divisible):
            parts = self.method.some(scene, least, part)
        else:
            parts = self.method.candidates(scene, least) if part[0] == 0 else iter(())
        for found in parts:
            yield self._marked(scene, found)

    def _marked(self, scene: Scene, found: Candidates) -> Candidates:
        """Places that are marked themselves are known to be wrong."""
        scores = found.scores.copy()
        for box, positives in self.marked.get(scene_path(scene.path), []):
            middle = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
            here = ((middle >= box[:2]) & (middle <= box[2:])).all(axis=1)
            here |= box_iou(torch.from_numpy(found.boxes), torch.tensor([box]).double())[:, 0].numpy() >= SAME
            here &= np.isin(found.classes, positives)
            scores[here] = np.minimum(scores[here], FLOOR)
        return replace(found, scores=scores)

    def whole(self, found: Candidates, thresholds: Mapping[str, float]) -> Candidates:
        """See `Divisible`."""
        parts = []
        for number, own in self.numbers.items():
            mine = found.classes == number
            others = found.at(np.isin(found.classes, self.against.get(number, [])))
            scores = _lowered(found.at(mine), others, on_scale_of(self.method, number, others))
            keep = scores >= thresholds[self.method.classes[number]]
            where = np.flatnonzero(mine)[keep]
            parts.append(replace(found.at(where), classes=np.full(len(where), own), scores=scores[keep]))
        return Candidates.join(parts)


def _lowered(mine: Candidates, others: Candidates, likeness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores ``[n]`` of a class's places beside those of its negatives, which resemble them by ``likeness``."""
    scores = mine.scores
    if not len(scores) or not len(likeness):
        return scores
    overlap = box_iou(torch.from_numpy(mine.regions), torch.from_numpy(others.regions)).numpy()
    unlike = np.where(overlap >= SAME, likeness, 0.0).max(axis=1)
    lowered = scores * np.minimum(1, scores / np.maximum(unlike, 1e-12))
    # What re-ranking hears, it hears still: what is surely wrong is what it learns from.
    return np.asarray(np.where(scores >= FLOOR, np.maximum(lowered, FLOOR), lowered))
