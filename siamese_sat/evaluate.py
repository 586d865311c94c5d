"""Detections against truth: average precision, recall, the best-F1 threshold, calibration.

Tables hold x_min, y_min, x_max, y_max (pixels, half-open), class_name and filename; detections also score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from siamese_sat.errors import InputError

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Affinity = Callable[[FloatArray, FloatArray], FloatArray]

BOX = ["x_min", "y_min", "x_max", "y_max"]
TRUTH = [*BOX, "class_name", "filename"]
DETECTIONS = [*TRUTH, "score"]
DEFAULT_THRESHOLD = 0.3
NEVER = -np.inf  # affinity of a pair that may not be matched
BLOCK = 4_000_000  # pairs compared at once: 32 MB for each temporary array


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
    curve: Curve = field(repr=False, compare=False)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of each class, in alphabetical order."""

    per_class: dict[str, ClassEvaluation]

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
        columns = [name for name in ClassEvaluation.__dataclass_fields__ if name != "curve"]
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
    detections, truth = _checked(detections, DETECTIONS, images), _checked(truth, TRUTH, images)
    coco = coco_average_precision(detections, truth)
    order = _best_first(detections)
    hits = _assign(detections, truth, _overlap(0.5))[order] >= 0
    centre_hits = _assign(detections, truth, _nearness)[order] >= 0
    names, scores = detections["class_name"].to_numpy()[order], _numbers(detections, "score")[order]
    megapixels = sum(width * height for width, height in images.values()) / 1e6
    result = {}
    for name, (ap50, ap) in coco.items():
        rows, objects = names == name, int((truth["class_name"] == name).sum())
        used = threshold.get(name, DEFAULT_THRESHOLD) if isinstance(threshold, Mapping) else threshold
        curve = _curve(hits[rows], scores[rows], objects)
        figures = _operating_points(curve, hits[rows], objects, used, megapixels)
        ap_centre = _all_point_precision(centre_hits[rows], objects)
        result[name] = ClassEvaluation(
            objects, int(rows.sum()), ap50, ap, ap_centre, float(used), *figures, curve=curve
        )
    return Evaluation(result)


def match(detections: pd.DataFrame, truth: pd.DataFrame, iou: float = 0.5) -> pd.DataFrame:
    """Says which object each detection found, by COCO's rule.

    Within an image and a class the best detection chooses first, and takes the object not yet taken that it
    overlaps most, if by at least ``iou``.

    Returns:
        The detections, in their order, with ``hit`` (bool) and ``truth_index`` (row number in ``truth``, -1
        for none).

    Raises:
        InputError: a column is missing or a number is not finite.
    """
    detections = _checked(detections, DETECTIONS)
    found = _assign(detections, _checked(truth, TRUTH), _overlap(iou))
    return detections.assign(hit=found >= 0, truth_index=found)


def missed(matched: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``truth`` that no detection of ``match``'s answer found."""
    return truth[~np.isin(np.arange(len(truth)), matched["truth_index"].to_numpy())]


def reliability(scores: npt.ArrayLike, hits: npt.ArrayLike, bins: int = 10) -> pd.DataFrame:
    """How often detections of each score are right (a reliability diagram).

    Args:
        scores: probabilities ``[n]``.
        hits: whether each was right, ``[n]``.
        bins: number of bins of equal width; a score on an edge belongs to the bin above.

    Returns:
        One row per bin: ``bin`` (centre), ``mean_score``, ``precision`` (both NaN if empty), ``count``.

    Raises:
        InputError: a score lies outside [0, 1].
    """
    score, hit = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    if not ((score >= 0) & (score <= 1)).all():
        raise InputError("Reliability needs probabilities: give scores between 0 and 1.")
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], score, side="right")
    count = np.bincount(place, minlength=bins)
    means = [np.bincount(place, values, bins) / np.where(count, count, np.nan) for values in (score, hit)]
    centres = (edges[:-1] + edges[1:]) / 2
    return pd.DataFrame({"bin": centres, "mean_score": means[0], "precision": means[1], "count": count})


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error of ``reliability``'s table, in [0, 1]; NaN when it counts nothing."""
    gap = (table["mean_score"] - table["precision"]).abs() * table["count"]
    return float(gap.sum() / table["count"].sum()) if table["count"].any() else np.nan


def coco_average_precision(
    detections: pd.DataFrame, truth: pd.DataFrame, max_detections: int | None = None
) -> dict[str, tuple[float, float]]:
    """COCO's 101-point average precision, objects of all sizes.

    Args:
        detections: boxes with scores.
        truth: boxes.
        max_detections: the best so many per image and class are looked at. None looks at all: COCO's own 100
            would cut scenes that hold hundreds of objects.

    Returns:
        By class of either table, in alphabetical order: AP at IoU 0.5, and the mean of AP at IoU 0.5, 0.55,
        ... 0.95; NaN for a class without truth.

    Raises:
        InputError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        remedy = 'pip install "siamese-sat[evaluate]"'
        raise InputError(f"Average precision needs faster-coco-eval; install it with {remedy}.") from error
    real = set(truth["class_name"])
    classes = sorted({*detections["class_name"], *real})
    if detections.empty or truth.empty:
        return {name: (0.0, 0.0) if name in real else (np.nan, np.nan) for name in classes}
    # Images are numbered by name and detections given best first: COCO then breaks ties as _best_first does.
    files = sorted({*detections["filename"], *truth["filename"]})
    ordered = detections.iloc[_best_first(detections)]
    gold = COCO()
    gold.dataset = {
        "images": [{"id": i} for i in range(len(files))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": _coco_entries(truth, files, classes),
    }
    gold.createIndex()
    run = COCOeval_faster(gold, gold.loadRes(_coco_entries(ordered, files, classes)), "bbox", print_function=log.debug)
    run.params.maxDets = [len(detections) if max_detections is None else max_detections]
    run.params.areaRng, run.params.areaRngLbl = [[0.0, 1e20]], ["all"]
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, 0].mean(axis=1)  # [IoU, class]; -1 where there is no truth
    precision = np.where(precision < 0, np.nan, precision)
    return {name: (float(precision[0, i]), float(precision[:, i].mean())) for i, name in enumerate(classes)}


def _coco_entries(table: pd.DataFrame, files: list[str], classes: list[str]) -> list[dict[str, Any]]:
    boxes = _numbers(table, BOX)
    sizes = boxes[:, 2:] - boxes[:, :2]
    columns = {
        "image_id": pd.Index(files).get_indexer(pd.Index(table["filename"])).tolist(),
        "category_id": pd.Index(classes).get_indexer(pd.Index(table["class_name"])).tolist(),
        "bbox": np.hstack([boxes[:, :2], sizes]).tolist(),
        "area": sizes.prod(axis=1).tolist(),
        "score": _numbers(table, "score").tolist() if "score" in table else [1.0] * len(table),
    }
    rows = zip(*columns.values(), strict=True)
    # COCO marks "unmatched" by 0, so numbers start at 1.
    return [dict(zip(columns, row, strict=True), id=i, iscrowd=0) for i, row in enumerate(rows, start=1)]


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


def _checked(
    table: pd.DataFrame, columns: list[str], images: Mapping[str, tuple[int, int]] | None = None
) -> pd.DataFrame:
    kind = "Detections" if "score" in columns else "Truth"
    lacking = [column for column in columns if column not in table]
    if lacking and len(table):
        raise InputError(f"{kind} must have the column(s) {', '.join(lacking)} too.")
    table = table.assign(**{column: [] for column in lacking})
    if not np.isfinite(_numbers(table, [column for column in columns if column in (*BOX, "score")])).all():
        raise InputError(f"{kind} must have finite boxes and scores; remove the rows that have not.")
    if images is not None and (unknown := set(table["filename"]) - set(images)):
        raise InputError(f"{kind} name {min(unknown)}, which is not among the {len(images)} images searched.")
    return table


def _numbers(table: pd.DataFrame, columns: str | list[str]) -> FloatArray:
    return table[columns].to_numpy(dtype=np.float64)


def _best_first(detections: pd.DataFrame) -> IntArray:
    """Row numbers ``[n]``, best score first."""
    files = pd.factorize(detections["filename"], sort=True)[0]
    keys = (*_numbers(detections, BOX).T, files, -_numbers(detections, "score"))
    return np.lexsort(keys).astype(np.int64)


def _assign(detections: pd.DataFrame, truth: pd.DataFrame, affinity: Affinity) -> IntArray:
    """For each detection ``[n]`` the row number of its object, -1 for none; one detection per object.

    ``affinity`` turns boxes ``[d, 4]`` and ``[t, 4]`` into ``[d, t]``: more is better, NEVER is no match.
    """
    order, keys = _best_first(detections), ["filename", "class_name"]
    boxes, objects = _numbers(detections, BOX), _numbers(truth, BOX)
    result = np.full(len(detections), -1, dtype=np.int64)
    places = truth.groupby(keys, observed=True).indices
    for key, within in detections.iloc[order].groupby(keys, observed=True).indices.items():
        if key not in places:
            continue
        rows = order[np.sort(within)]
        columns = np.sort(places[key])[::-1]  # among equals COCO takes the last object, argmax the first
        free = np.zeros(len(columns))
        for block in np.array_split(rows, len(rows) * len(columns) // BLOCK + 1):
            pairs = affinity(boxes[block], objects[columns])
            for i in np.flatnonzero((pairs > NEVER).any(axis=1)):
                best = int((pairs[i] + free).argmax())
                if pairs[i, best] + free[best] > NEVER:
                    result[block[i]] = columns[best]
                    free[best] = NEVER
    return result


def _overlap(least: float) -> Affinity:
    def affinity(a: FloatArray, b: FloatArray) -> FloatArray:
        sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
        shared = sides.clip(min=0).prod(axis=2)
        area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b))
        iou = shared / np.maximum(area_a[:, None] + area_b - shared, np.finfo(np.float64).tiny)
        return np.where(iou >= least, iou, NEVER)

    return affinity


def _nearness(a: FloatArray, b: FloatArray) -> FloatArray:
    """Minus the squared distance of the centres, where that of ``a`` lies in ``b``'s half-open box."""
    centre, other = (a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2
    inside = (centre[:, None] >= b[:, :2]) & (centre[:, None] < b[:, 2:])
    distance = ((centre[:, None] - other) ** 2).sum(axis=2)
    return np.where(inside.all(axis=2), -distance, NEVER)
