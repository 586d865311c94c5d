from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from siamese_sat.search.overlap import Boxes, Numbers, kept


def over_all(boxes: Boxes, classes: Numbers, iou: float) -> list[int]:
    falling = torch.arange(len(boxes), 0, -1, dtype=torch.float64)
    found = batched_nms(torch.from_numpy(boxes), falling, torch.from_numpy(classes), iou)
    return sorted(found.tolist())


def random_boxes(seed: int, count: int, largest: int) -> Boxes:
    """Whole numbers, so that two ways to compute an overlap give the same."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 600, (count, 2))
    return np.concatenate([corner, corner + rng.integers(1, largest, (count, 2))], axis=1).astype(float)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("iou", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("largest", [8, 60, 700])
def test_in_parts_as_over_all(seed: int, iou: float, largest: int) -> None:
    boxes = random_boxes(seed, 700, largest)
    classes = np.random.default_rng(seed).integers(0, 3, len(boxes))
    expected = over_all(boxes, classes, iou)
    for part in (1, 7, 50, 10_000):
        assert kept(boxes, classes, iou, part).tolist() == expected


@pytest.mark.parametrize("part", [1, 2, 5])
def test_a_chain_across_all_parts(part: int) -> None:
    """Each box is suppressed by the one before it, if that stays: the first decides on the last."""
    x = np.arange(61) * 10.0
    boxes = np.stack([x, np.zeros(61), x + 16, np.full(61, 16.0)], axis=1)
    classes = np.zeros(61, np.int64)
    assert kept(boxes, classes, 0.1, part).tolist() == list(range(0, 61, 2))
    assert kept(boxes[1:], classes[1:], 0.1, part).tolist() == list(range(0, 60, 2))


def test_equal_boxes_leave_the_first_of_each_class() -> None:
    boxes = np.tile([5.0, 5.0, 9.0, 9.0], (40, 1))
    assert kept(boxes, np.arange(40) % 4, 0.5, 3).tolist() == [0, 1, 2, 3]


def test_windows_of_a_grid_with_equal_scores_and_places_before_the_scene() -> None:
    y, x = np.mgrid[-64:2000:32, -64:2000:32].reshape(2, -1).astype(float)
    boxes = np.stack([x, y, x + 64, y + 64], axis=1)
    classes = np.zeros(len(boxes), np.int64)
    assert kept(boxes, classes, 0.1, 200).tolist() == over_all(boxes, classes, 0.1)


def test_none() -> None:
    assert kept(np.empty((0, 4)), np.empty(0, np.int64), 0.5).tolist() == []
