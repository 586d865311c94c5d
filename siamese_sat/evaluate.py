"""Detections against truth: average precision, recall, the best-F1 threshold, calibration.

Tables hold x_min, y_min, x_max, y_max (pixels, half-open), class_name and filename; detections also score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd

from siamese_sat.evaluation.coco import coco_average_precision
from siamese_sat.evaluation.matching import assign, nearness, overlap
from siamese_sat.evaluation.reliability import calibration_error, detection_reliability
from siamese_sat.evaluation.tables import DETECTIONS, TRUTH, BoolArray, FloatArray, best_first, checked, numbers

DEFAULT_THRESHOLD = 0.3


@dataclass(frozen=True)
class Curve:
    """One point per detection of a class, best score first; arrays ``[detections]``."""

    recall: FloatArray
    precision: FloatArray
    score: FloatArray


@dataclass(frozen=True)
class ClassEvaluation:
    """How well one class was found, at IoU 0.5 unless said otherwise; without truth every figure is NaN."""

    objects: int
    detections: int  # at any score
    ap50: float  # COCO average precision
    ap: float  # COCO average precision, mean of IoU 0.5, 0.55, ... 0.95
    ap_centre: float  # a detection hits when its centre lies inside the object's box
    threshold: float  # the one in use: score >= threshold is kept
    precision: float  # at threshold; 0 when nothing is kept
    recall: float  # at threshold
    f1: float  # at threshold
    best_threshold: float  # of the highest F1; NaN when nothing is hit
    best_f1: float
    recall_at_1_fp: float  # with at most one false positive per million pixels searched
    calibration_error: float  # of the scores from 0.05 up, in [0, 1]; NaN where there is none, or it is no probability
    curve: Curve = field(repr=False, compare=False)
    reliability: pd.DataFrame = field(repr=False, compare=False)  # see `detection_reliability`


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of each class, in alphabetical order."""

    per_class: dict[str, ClassEvaluation]

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds in use by class."""
        return {name: entry.threshold for name, entry in self.per_class.items()}

    @property
    def mean(self) -> dict[str, float]:
        """Unweighted mean over the classes that have truth; counts are totals, thresholds are NaN."""
        rows = self._rows()
        figures = rows[rows["objects"] > 0].mean()
        figures[["objects", "detections"]] = rows[["objects", "detections"]].sum()
        figures[["threshold", "best_threshold"]] = np.nan
        return {str(name): float(value) for name, value in figures.items()}

    def table(self) -> pd.DataFrame:
        """One row per class and a last row ``mean``; the class names are the index."""
        rows = self._rows()
        rows.loc["mean"] = pd.Series(self.mean)
        return rows.astype({"objects": int, "detections": int}).rename_axis("class_name")

    def _rows(self) -> pd.DataFrame:
        columns = [entry.name for entry in fields(ClassEvaluation) if entry.compare]
        rows = [[getattr(entry, name) for name in columns] for entry in self.per_class.values()]
        return pd.DataFrame(rows, index=list(self.per_class), columns=columns)


def evaluate(
    detections: pd.DataFrame,
    truth: pd.DataFrame,
    images: Mapping[str, tuple[int, int]],
    threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
) -> Evaluation:
    """Compares detections with truth, class by class.

    Equal scores are ordered by file name and then by box, so the order of the rows does not matter.

    Args:
        detections: boxes with scores.
        truth: boxes.
        images: file name to (width, height) of every image searched, also of those without truth.
        threshold: the one in use, for all classes or by class name (0.3 for one that is not named).

    Raises:
        InputError: a column is missing, a number is not finite, a file is not among ``images``, or
            faster-coco-eval is not installed.
    """
    detections, truth = checked(detections, DETECTIONS, images), checked(truth, TRUTH, images)
    coco = coco_average_precision(detections, truth)
    order = best_first(detections)
    hits = assign(detections, truth, overlap(0.5))[order] >= 0
    centre_hits = assign(detections, truth, nearness)[order] >= 0
    names, scores = detections["class_name"].to_numpy()[order], numbers(detections, "score")[order]
    megapixels = sum(width * height for width, height in images.values()) / 1e6
    result = {}
    for name, (ap50, ap) in coco.items():
        rows, objects = names == name, int((truth["class_name"] == name).sum())
        used = threshold.get(name, DEFAULT_THRESHOLD) if isinstance(threshold, Mapping) else threshold
        curve = _curve(hits[rows], scores[rows], objects)
        figures = _operating_points(curve, hits[rows], objects, used, megapixels)
        ap_centre = _all_point_precision(centre_hits[rows], objects)
        reliable = detection_reliability(scores[rows], hits[rows])
        error = calibration_error(reliable) if objects else np.nan
        result[name] = ClassEvaluation(
            objects, int(rows.sum()), ap50, ap, ap_centre, float(used), *figures, error, curve, reliable
        )
    return Evaluation(result)


def _curve(hits: BoolArray, scores: FloatArray, objects: int) -> Curve:
    true = np.cumsum(hits)
    return Curve(true / (objects or np.nan), true / np.arange(1, len(hits) + 1), scores)


def _operating_points(
    curve: Curve, hits: BoolArray, objects: int, threshold: float, megapixels: float
) -> tuple[float, float, float, float, float, float]:
    """Precision, recall and F1 at the threshold, best threshold and its F1, recall at 1 FP per megapixel."""
    if not objects:
        return (np.nan,) * 6
    # Point k keeps the k best. A threshold cannot part equal scores: only the last of a run can be a stop.
    true, kept = np.append(0, np.cumsum(hits)), np.arange(len(hits) + 1)
    stops = np.flatnonzero(np.append(True, np.append(curve.score[1:] != curve.score[:-1], True)[: len(hits)]))
    f1 = 2 * true / (kept + objects)
    used = int((curve.score >= threshold).sum())
    best = int(stops[f1[stops].argmax()])
    calm = int(stops[(kept - true)[stops] <= megapixels][-1])
    best_threshold = float(curve.score[best - 1]) if best else np.nan
    precision, recall = true[used] / max(used, 1), true[used] / objects
    return precision, recall, f1[used], best_threshold, f1[best], true[calm] / objects


def _all_point_precision(hits: BoolArray, objects: int) -> float:
    """Area under the precision envelope (Pascal VOC 2010); each hit adds 1 / objects of recall."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / (objects or np.nan))
