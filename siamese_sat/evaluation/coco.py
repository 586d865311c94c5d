"""Average precision as COCO counts it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from siamese_sat.errors import InputError
from siamese_sat.evaluation.tables import BOX, best_first, numbers

log = logging.getLogger(__name__)


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
    # Images are numbered by name and detections given best first: COCO then breaks ties as best_first does.
    files = sorted({*detections["filename"], *truth["filename"]})
    ordered = detections.iloc[best_first(detections)]
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
    boxes = numbers(table, BOX)
    sizes = boxes[:, 2:] - boxes[:, :2]
    columns = {
        "image_id": pd.Index(files).get_indexer(pd.Index(table["filename"])).tolist(),
        "category_id": pd.Index(classes).get_indexer(pd.Index(table["class_name"])).tolist(),
        "bbox": np.hstack([boxes[:, :2], sizes]).tolist(),
        "area": sizes.prod(axis=1).tolist(),
        "score": numbers(table, "score").tolist() if "score" in table else [1.0] * len(table),
    }
    rows = zip(*columns.values(), strict=True)
    # COCO marks "unmatched" by 0, so numbers start at 1.
    return [dict(zip(columns, row, strict=True), id=i, iscrowd=0) for i, row in enumerate(rows, start=1)]
