"""Which object each detection found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from siamese_sat.evaluation.tables import BOX, DETECTIONS, TRUTH, FloatArray, IntArray, best_first, checked, numbers

# Turns boxes [d, 4] and [t, 4] into [d, t]: more is better, NEVER is no match.
Affinity = Callable[[FloatArray, FloatArray], FloatArray]

NEVER = -np.inf
BLOCK = 4_000_000  # pairs compared at once: 32 MB for each temporary array


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
    detections = checked(detections, DETECTIONS)
    found = assign(detections, checked(truth, TRUTH), overlap(iou))
    return detections.assign(hit=found >= 0, truth_index=found)


def missed(matched: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``truth`` that no detection of ``match``'s answer found."""
    return truth[~np.isin(np.arange(len(truth)), matched["truth_index"].to_numpy())]


def assign(detections: pd.DataFrame, truth: pd.DataFrame, affinity: Affinity) -> IntArray:
    """For each detection ``[n]`` the row number of its object, -1 for none; one detection per object."""
    order, keys = best_first(detections), ["filename", "class_name"]
    boxes, objects = numbers(detections, BOX), numbers(truth, BOX)
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


def nearest(boxes: pd.DataFrame, others: pd.DataFrame) -> tuple[IntArray, FloatArray]:
    """For each box the other of its image and class that it overlaps most, be that taken or not.

    Returns:
        Row numbers in ``others`` ``[n]``, -1 where none overlaps, and the IoU ``[n]``, 0 there.
    """
    keys = ["filename", "class_name"]
    mine, theirs = numbers(boxes, BOX), numbers(others, BOX)
    index, best = np.full(len(boxes), -1, dtype=np.int64), np.zeros(len(boxes))
    places = others.groupby(keys, observed=True).indices
    for key, rows in boxes.groupby(keys, observed=True).indices.items():
        if key not in places:
            continue
        for block in np.array_split(rows, len(rows) * len(places[key]) // BLOCK + 1):
            pairs = iou_of(mine[block], theirs[places[key]])
            best[block] = pairs.max(axis=1)
            index[block] = np.where(best[block] > 0, places[key][pairs.argmax(axis=1)], -1)
    return index, best


def iou_of(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of boxes ``[n, 4]`` and ``[m, 4]``, ``[n, m]``; 0 where a number is NaN."""
    found: FloatArray = box_iou(torch.tensor(a), torch.tensor(b)).numpy()
    return np.nan_to_num(found)  # NaN of two boxes without an area too


def overlap(least: float) -> Affinity:
    """IoU, where it is at least ``least``."""

    def affinity(a: FloatArray, b: FloatArray) -> FloatArray:
        iou = iou_of(a, b)
        return np.where(iou >= least, iou, NEVER)

    return affinity


def nearness(a: FloatArray, b: FloatArray) -> FloatArray:
    """Minus the squared distance of the centres, where that of ``a`` lies in ``b``'s half-open box."""
    centre, other = (a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2
    inside = (centre[:, None] >= b[:, :2]) & (centre[:, None] < b[:, 2:])
    distance = ((centre[:, None] - other) ** 2).sum(axis=2)
    return np.where(inside.all(axis=2), -distance, NEVER)
