"""What the exemplars of a class have in common: turned alike, and each cell weighted by how well they agree on it.

An exemplar's cells hold the thing and whatever happens to lie round it. The thing is what recurs, so cells in which the
exemplars resemble each other count, and surroundings that differ from one to the next do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Consensus:
    """Exemplars of a class, turned alike: view v of each shows the thing in one direction.

    Attributes:
        patches: ``[exemplars, views, D, n, n]``, cells times weight, of unit length under the weights.
        weights: ``[views, n, n]`` of cells, 0 to 1.
        shift: ``[exemplars]`` views by which each was turned.
    """

    patches: Tensor
    weights: Tensor
    shift: npt.NDArray[np.int64]

    @property
    def kernels(self) -> Tensor:
        """``[views, D, n, n]``: their dot product with a place is the mean of the exemplars' own."""
        return self.patches.mean(0)

    def cosines(self, places: Tensor) -> Tensor:
        """Weighted cosine ``[N, exemplars, views]`` of places ``[N, D, n, n]`` with every exemplar in every view."""
        exemplars, views = self.patches.shape[:2]
        dots = places.flatten(1) @ self.patches.flatten(2).flatten(0, 1).T
        energy = places.square().sum(1).flatten(1) @ self.weights.flatten(1).T
        cosine: Tensor = dots.reshape(-1, exemplars, views) / energy.clamp(min=1e-12).sqrt()[:, None]
        return cosine


def find_consensus(cells: Tensor) -> Consensus:
    """Turns exemplars alike and weighs their cells.

    Args:
        cells: ``[exemplars, views, D, n, n]``, whitened; views evenly over the circle.
    """
    shift = align(F.normalize(cells.flatten(2), dim=2))
    turned = torch.stack([one.roll(-int(s), 0) for one, s in zip(cells, shift, strict=True)])
    weights = agreement(turned)
    length = (turned.square().sum(2) * weights).sum((2, 3)).sqrt().clamp(min=1e-12)
    return Consensus(turned * weights[None, :, None] / length[:, :, None, None, None], weights, shift)


def align(views: Tensor) -> npt.NDArray[np.int64]:
    """By how many views ``[exemplars]`` each must be turned to look most like the others.

    First like the one that resembles the others most, then, exemplar by exemplar, like the mean of the rest.

    Args:
        views: ``[exemplars, views, length]`` of unit length.
    """
    count, turns = views.shape[:2]
    alike = torch.stack([torch.einsum("ivd,jvd->ij", views, views.roll(-t, 1)) for t in range(turns)], dim=2)
    first = int(alike.amax(2).sum(1).argmax())
    shift = alike[first].argmax(1)
    shift[first] = 0
    for _ in range(3):
        total = sum(views[i].roll(-int(shift[i]), 0) for i in range(count))
        for i in range(count):
            rest = total - views[i].roll(-int(shift[i]), 0)
            shift[i] = torch.stack([(views[i].roll(-t, 0) * rest).sum() for t in range(turns)]).argmax()
            total = rest + views[i].roll(-int(shift[i]), 0)
    return np.asarray(shift.cpu().numpy(), dtype=np.int64)


def agreement(cells: Tensor) -> Tensor:
    """Weights ``[views, n, n]`` in 0..1 of cells ``[exemplars, views, D, n, n]`` that are turned alike.

    The share of the cells' energy that is common to the exemplars, corrected for what chance gives so few: 0 where they
    are unrelated, largest in each view 1. A single exemplar agrees with itself everywhere.
    """
    count = len(cells)
    if count == 1:
        return torch.ones_like(cells[0, :, 0])
    common = cells.mean(0).square().sum(1)
    every = cells.square().sum(2).mean(0).clamp(min=1e-12)
    share = ((count * common / every - 1) / (count - 1)).clamp(0, 1)
    most = share.amax((1, 2), keepdim=True)
    # Exemplars with nothing in common: every cell counts the same.
    return torch.where(most > 0, share / most.clamp(min=1e-12), torch.ones_like(share))
