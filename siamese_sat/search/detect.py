"""From scored places to detections: threshold, suppression, order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from siamese_sat.errors import InputError
from siamese_sat.search.overlap import kept
from siamese_sat.search.scenery import Scenery
from siamese_sat.search.voting import vote

COLUMNS = ["x_min", "y_min", "x_max", "y_max", "class_name", "filename", "score"]
Threshold = float | Mapping[str, float]


@dataclass(frozen=True)
class Candidates:
    """Scored places, of one scene where nothing else is said.

    Attributes:
        boxes: ``[n, 4]`` extent of the thing, scene pixels.
        regions: ``[n, 4]`` the part of the scene that was compared; places suppress each other by these.
        classes: ``[n]`` number of the class.
        scores: ``[n]`` calibrated, 0..1.
        looks: ``[n, d]`` what each looks like, see `siamese_sat.search.rerank`; None where the method does not say.
        surroundings: ``[n, D]`` what lies round each, see `siamese_sat.search.scenery`; None likewise.
        scenery: of the part of the scene that they were found in, until all parts have told, see `told`.
    """

    boxes: npt.NDArray[np.float64]
    regions: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    looks: npt.NDArray[np.int8] | None = None
    surroundings: npt.NDArray[np.int8] | None = None
    scenery: Scenery | None = None

    def at(self, some: npt.NDArray[Any]) -> Candidates:
        """Some of them, by a mask or by their numbers, without the scenery."""
        looks, surroundings = (one[some] if one is not None else None for one in (self.looks, self.surroundings))
        return Candidates(
            self.boxes[some], self.regions[some], self.classes[some], self.scores[some], looks, surroundings
        )

    @property
    def told(self) -> Candidates:
        """The same, each told by the scenery what lies round it."""
        if self.scenery is None:
            return self
        middle = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        return replace(self, surroundings=self.scenery.round(middle, self.classes), scenery=None)

    @property
    def blind(self) -> Candidates:
        """The same, of which it is not known what they and their surroundings look like."""
        return replace(self, looks=None, surroundings=None)

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """All parts as one; none gives an empty one."""
        if not parts:
            return cls(np.empty((0, 4)), np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
        scenery = [p.scenery for p in parts if p.scenery is not None]
        return cls(
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.regions for p in parts]),
            np.concatenate([p.classes for p in parts]),
            np.concatenate([p.scores for p in parts]),
            _of_all([p.looks for p in parts], parts),
            _of_all([p.surroundings for p in parts], parts),
            Scenery.join(scenery) if scenery else None,
        )


def _of_all(told: Sequence[npt.NDArray[np.int8] | None], parts: Sequence[Candidates]) -> npt.NDArray[np.int8] | None:
    """What is known of the candidates of all parts; parts without one need not say anything."""
    known = [one for one in told if one is not None]
    whole = bool(known) and sum(map(len, known)) == sum(len(p.scores) for p in parts)
    return np.concatenate(known) if whole else None


def check_threshold(threshold: Threshold, classes: Sequence[str]) -> dict[str, float]:
    """One threshold per class.

    Raises:
        InputError: out of 0..1, or a class that is not searched is named.
    """
    if isinstance(threshold, Mapping):
        strange = sorted(set(threshold) - set(classes))
        if strange:
            raise InputError(f"search.threshold names {strange[0]!r}, but searched are {', '.join(classes)}.")
        found = {c: float(threshold.get(c, 0.3)) for c in classes}
    else:
        found = dict.fromkeys(classes, float(threshold))
    for name, value in found.items():
        if not 0 <= value <= 1:
            raise InputError(f"search.threshold={value} for {name} must lie between 0 and 1.")
    return found


def suppress(candidates: Candidates, nms_iou: float, vote_iou: float = 0.0) -> Candidates:
    """Non-maximum suppression within each class of one scene; what is left comes best first.

    Args:
        candidates: of one scene.
        nms_iou: of two of a class that overlap by more, the better stays.
        vote_iou: boxes that stay are put right by those that went and overlap them by so much, see `vote`; 0: not.

    Raises:
        InputError: ``nms_iou`` is outside 0..1.
    """
    if not 0 <= nms_iou <= 1:
        raise InputError(f"search.nms_iou={nms_iou} must lie between 0 and 1.")
    # Ties are broken by place, so that the order in which windows were scored never shows.
    x_min, y_min, x_max, y_max = candidates.boxes.T
    order = np.lexsort((candidates.classes, x_max, y_max, x_min, y_min, -candidates.scores))
    chosen = order[kept(candidates.regions[order], candidates.classes[order], nms_iou)]
    best = candidates.at(chosen)
    boxes, classes, scores = best.boxes, best.classes, best.scores
    if vote_iou > 0:
        # What overlaps a box by less than this was not suppressed by it.
        least = max(vote_iou, nms_iou)
        went = order[~np.isin(order, chosen)]
        for number in np.unique(classes):
            mine, others = classes == number, went[candidates.classes[went] == number]
            boxes[mine] = vote(boxes[mine], scores[mine], candidates.boxes[others], candidates.scores[others], least)
    return replace(best, boxes=boxes)


def to_frame(
    candidates: Candidates, classes: Sequence[str], filename: str, bounds: tuple[int, int, int, int]
) -> pd.DataFrame:
    """Detections of one scene as rows; boxes are cut to ``bounds``, the searched part of the scene."""
    frame = pd.DataFrame(candidates.boxes, columns=COLUMNS[:4])
    frame[["x_min", "x_max"]] = frame[["x_min", "x_max"]].clip(bounds[0], bounds[2])
    frame[["y_min", "y_max"]] = frame[["y_min", "y_max"]].clip(bounds[1], bounds[3])
    frame["class_name"] = [classes[i] for i in candidates.classes]
    frame["filename"] = filename
    frame["score"] = candidates.scores
    return frame


def best_first(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All scenes' detections in one table, best first, ties in a fixed order."""
    parts = [p for p in parts if not p.empty]
    if not parts:
        return pd.DataFrame({c: pd.Series(dtype="str" if c in COLUMNS[4:6] else "float") for c in COLUMNS})
    frame = pd.concat(parts, ignore_index=True)
    keys = ["score", "filename", "class_name", "y_min", "x_min"]
    return frame.sort_values(keys, ascending=[False, True, True, True, True], ignore_index=True)
