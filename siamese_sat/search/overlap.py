"""Non-maximum suppression in parts, with the result of one run over all boxes, in nearly linear time.

Torchvision compares every box that stays with all that follow: quadratic in their number. Boxes that do not touch have
nothing to say to each other, so each class is halved until its parts are small. A part is suppressed together with what
stays of its neighbours, again and again until nothing changes any more.

When nothing changes the result is exact. Go through all boxes, best first: of those better than a box, all that touch
it are in its part or among the neighbours that stay, and they stay rightly, as has been shown for better ones before;
so the box is judged as it would be by all. It comes to that, because in each round the best of the boxes that are still
judged wrongly is put right. A chain of boxes, each suppressing the next, costs a round for every border it crosses;
few cross more than two or three.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import nms

Boxes = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

# Boxes of a part at most: fewer cost more calls, more cost more comparisons.
PART = 1024


def kept(boxes: Boxes, classes: Numbers, iou: float, part: int = PART) -> Numbers:
    """Which boxes stay, each class for itself.

    Args:
        boxes: ``[n, 4]``, best first.
        classes: ``[n]``.
        iou: a box goes when one that is better, and stays, overlaps it by more than this, 0..1.
        part: boxes, at most, that are compared all with all.

    Returns:
        Positions, ascending.
    """
    stays = np.zeros(len(boxes), dtype=bool)
    for number in np.unique(classes):
        mine = np.flatnonzero(classes == number)
        stays[mine] = _of_class(boxes[mine], iou, part)
    return np.flatnonzero(stays)


def _of_class(boxes: Boxes, iou: float, part: int) -> npt.NDArray[np.bool_]:
    stays = np.zeros(len(boxes), dtype=bool)
    parts = list(_halved(boxes, np.arange(len(boxes)), np.empty(0, np.int64), part))
    owner = np.empty(len(boxes), np.int64)
    for number, (inner, _) in enumerate(parts):
        owner[inner] = number
        stays[inner] = _survivors(boxes, inner, iou)
    # Whom a part must tell when its own change.
    around = [np.unique(owner[near]) for _, near in parts]
    told: list[list[int]] = [[] for _ in parts]
    for number, neighbours in enumerate(around):
        for neighbour in neighbours:
            told[neighbour].append(number)
    waiting = {number for number, neighbours in enumerate(around) if len(neighbours)}
    while waiting:
        before, changed = stays.copy(), set()
        for number in waiting:
            inner, near = parts[number]
            together = np.sort(np.concatenate([inner, near[before[near]]]))
            found = _survivors(boxes, together, iou)[owner[together] == number]
            ordered = together[owner[together] == number]
            if (found != before[ordered]).any():
                stays[ordered] = found
                changed.update(told[number])
        waiting = changed
    return stays


def _survivors(boxes: Boxes, positions: Numbers, iou: float) -> npt.NDArray[np.bool_]:
    """Which of the boxes at these ascending positions stay among themselves."""
    stays = np.zeros(len(positions), dtype=bool)
    # Strictly falling numbers in place of scores: torchvision's sort is not stable.
    falling = torch.arange(len(positions), 0, -1, dtype=torch.float64)
    stays[nms(torch.from_numpy(boxes[positions]), falling, iou).numpy()] = True
    return stays


def _halved(boxes: Boxes, inner: Numbers, near: Numbers, part: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Parts of no more than so many boxes, ascending, and the boxes beyond each that touch what it spans."""
    if len(inner) <= part:
        yield np.sort(inner), near
        return
    centre = boxes[inner, :2] + boxes[inner, 2:]
    order = inner[np.argsort(centre[:, int(np.ptp(centre, axis=0).argmax())], kind="stable")]
    middle = len(order) // 2
    for own, other in ((order[:middle], order[middle:]), (order[middle:], order[:middle])):
        low, high = boxes[own, :2].min(axis=0), boxes[own, 2:].max(axis=0)
        beyond = np.concatenate([near, other])
        touches = ((boxes[beyond, :2] <= high) & (boxes[beyond, 2:] >= low)).all(axis=1)
        yield from _halved(boxes, own, beyond[touches], part)
