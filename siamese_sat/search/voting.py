"""Boxes put right by those that they suppressed.

A thing answers at neighbouring places, sizes and views, each with a box of its own; the best of them is not best in all
respects. So a box becomes the mean of all that lie where it does, each heard by a power of its odds: Gidaris and
Komodakis 2015, "Object Detection via a Multi-region & Semantic Segmentation-aware CNN Model", section 5.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from shapely import STRtree
from shapely import box as rectangles

FloatArray = npt.NDArray[np.float64]

# Of a score's odds, how much it is heard by.
POWER = 2.0
# Boxes of smaller odds than this part are not heard: a search need not know of any that is so far below its threshold.
HEARD = 0.1
# Odds of a score are finite.
SURE = 1e-9
# Boxes put right at a time.
BATCH = 4096


def vote(boxes: FloatArray, scores: FloatArray, voters: FloatArray, opinions: FloatArray, iou: float) -> FloatArray:
    """Boxes ``[n, 4]`` with the mean centre, and the geometric mean sides, of themselves and what lies where they do.

    Args:
        boxes: ``[n, 4]`` of one class.
        scores: ``[n]`` of these, 0..1.
        voters: ``[m, 4]`` the other boxes of the class; not these, which are other things.
        opinions: ``[m]`` scores of these.
        iou: a box is heard where it overlaps by so much at least, above 0.
    """
    if not len(boxes) or not len(voters):
        return boxes
    tree = STRtree(rectangles(*voters.T))
    centre, size = _measures(voters)
    says = _log_odds(opinions)
    found = []
    for at in range(0, len(boxes), BATCH):
        some = boxes[at : at + BATCH]
        number, voter = tree.query(rectangles(*some.T))
        less = says[voter] - _log_odds(scores[at : at + BATCH])[number]
        near = (less >= np.log(HEARD)) & (_overlap(some[number], voters[voter]) >= iou)
        number, voter, less = number[near], voter[near], less[near]
        # In a fixed order, or the last bits would depend on how the tree is built.
        order = np.lexsort((voter, number))
        number, voter = number[order], voter[order]
        weight = np.exp(POWER * np.minimum(less[order], 0))
        total = 1 + np.bincount(number, weight, len(some))
        own = np.concatenate(_measures(some), axis=1)
        heard_of = [np.bincount(number, weight * values[voter], len(some)) for values in (*centre.T, *size.T)]
        mean = (own + np.stack(heard_of, axis=1)) / total[:, None]
        middle, half = mean[:, :2], np.exp(mean[:, 2:]) / 2
        found.append(np.concatenate([middle - half, middle + half], axis=1))
    return np.concatenate(found)


def heard(threshold: float) -> float:
    """The least score of a box that one of this score is put right by, 0..1."""
    odds = HEARD * threshold / (1 - threshold) if threshold < 1 else math.inf
    return odds / (1 + odds) if odds < math.inf else 1.0


def _measures(boxes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Centres ``[n, 2]`` and logarithms of the sides ``[n, 2]``."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9))


def _log_odds(scores: FloatArray) -> FloatArray:
    sure = scores.clip(SURE, 1 - SURE)
    odds: FloatArray = np.log(sure / (1 - sure))
    return odds


def _overlap(one: FloatArray, two: FloatArray) -> FloatArray:
    """Intersection over union ``[n]`` of boxes pair by pair."""
    inner = np.minimum(one[:, 2:], two[:, 2:]) - np.maximum(one[:, :2], two[:, :2])
    shared = inner.clip(min=0).prod(axis=1)
    areas = (one[:, 2:] - one[:, :2]).prod(axis=1) + (two[:, 2:] - two[:, :2]).prod(axis=1)
    found: FloatArray = shared / np.maximum(areas - shared, 1e-12)
    return found
