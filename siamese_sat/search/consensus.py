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

# Of a place's energy, so much is taken to be left at least when its mean is taken off.
EVEN = 1e-4


@dataclass(frozen=True)
class Consensus:
    """Exemplars of a class, turned alike: view v of each shows the thing in one direction.

    Attributes:
        kernels: ``[views, D, n, n]``: their dot product with a place, over the root of its weighted energy, is the mean
            of the exemplars' weighted cosines in one common direction.
        patches: ``[exemplars, views, D, n, n]``: an exemplar's cells less ``contrast`` of their mean, times weight, of
            unit length under the weights. Cells that are all 0 lie beyond the exemplar's image and stay 0.
        weights: ``[views, n, n]`` of cells, 0 to 1.
        shift: ``[exemplars]`` views by which each was turned.
        contrast: part of a patch's own mean cell that is taken off it before it is compared closely: what lies evenly
            over thing and surroundings (a crop, water) says little.
    """

    kernels: Tensor
    patches: Tensor
    weights: Tensor
    shift: npt.NDArray[np.int64]
    contrast: float

    def cosines(self, places: Tensor) -> Tensor:
        """Weighted cosine ``[N, exemplars, views]`` of places ``[N, D, n, n]`` with every exemplar in every view.

        Both sides less ``contrast`` of their weighted mean cell.
        """
        exemplars, views = self.patches.shape[:2]
        cells, weights = places.flatten(2), self.weights.flatten(1)
        total = weights.sum(1).clamp(min=1e-12)
        mean = torch.einsum("ndk,vk->nvd", cells, weights / total[:, None])
        dots = (places.flatten(1) @ self.patches.flatten(2).flatten(0, 1).T).reshape(-1, exemplars, views)
        dots = dots - self.contrast * torch.einsum("nvd,evd->nev", mean, self.patches.sum((3, 4)))
        # |c - b m|^2 summed under the weights, m their mean: |c|^2 - (2 b - b^2) |m|^2.
        energy = cells.square().sum(1) @ weights.T
        rest = energy - (2 * self.contrast - self.contrast**2) * mean.square().sum(2) * total
        # Of an even place little but rounding may be left, which must not be blown up to a cosine.
        cosine: Tensor = dots / torch.maximum(rest, energy * EVEN).clamp(min=1e-12).sqrt()[:, None]
        return cosine


def find_consensus(cells: Tensor, contrast: float = 0.0) -> Consensus:
    """Turns exemplars alike and weighs their cells.

    Args:
        cells: ``[exemplars, views, D, n, n]``, whitened; views evenly over the circle.
        contrast: see `Consensus`, 0 to 1.
    """
    shift = align(F.normalize(cells.flatten(2), dim=2))
    turned = torch.stack([one.roll(-int(s), 0) for one, s in zip(cells, shift, strict=True)])
    weights = agreement(turned)
    known = (turned != 0).any(2, keepdim=True)
    total = (weights[None, :, None] * known).sum((3, 4), keepdim=True).clamp(min=1e-12)
    mean = (turned * weights[None, :, None]).sum((3, 4), keepdim=True) / total
    patches = _unit((turned - contrast * mean) * known, weights)
    return Consensus(_unit(turned, weights).mean(0), patches, weights, shift, contrast)


def _unit(cells: Tensor, weights: Tensor) -> Tensor:
    """Cells ``[exemplars, views, D, n, n]`` times weight, of unit length under the weights."""
    length = (cells.square().sum(2) * weights).sum((2, 3)).sqrt().clamp(min=1e-12)
    return cells * weights[None, :, None] / length[:, :, None, None, None]


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
