"""What is ordinary in the searched scenes, taken out of their features so that the rest stands out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.errors import InputError


@dataclass(frozen=True)
class Whitening:
    """Unit length, minus the background's mean, turned and scaled to its principal axes.

    Attributes:
        mean: ``[C]`` of background cells of unit length.
        axes: ``[C, D]`` principal axes, each divided by the background's standard deviation along it.
    """

    mean: Tensor
    axes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features ``[C, H, W]`` to whitened cells ``[D, H, W]``."""
        channels, height, width = features.shape
        cells = F.normalize(features.reshape(channels, -1), dim=0)
        # One product: axes' (cells - mean) = axes' cells - axes' mean.
        return torch.addmm(-(self.axes.T @ self.mean)[:, None], self.axes.T, cells).reshape(-1, height, width)


def fit_whitening(samples: Iterable[Tensor], dimensions: int = 128, shrinkage: float = 0.1) -> Whitening:
    """Mean and covariance of background cells, streamed; whitening with shrinkage (Ledoit and Wolf 2004).

    Args:
        samples: features ``[C, H, W]`` of background.
        dimensions: principal axes to keep; no more than C are.
        shrinkage: part of the mean variance mixed into every axis; 1 leaves a rotation only.

    Raises:
        InputError: shrinkage is outside 0..1, or there is no sample.
    """
    if not 0 <= shrinkage <= 1 or dimensions < 1:
        raise InputError("search.method: shrinkage must lie between 0 and 1, and dimensions be 1 or more.")
    count = 0
    total, product = torch.zeros(()), torch.zeros(())
    for sample in samples:
        cells = F.normalize(sample.reshape(sample.shape[0], -1), dim=0)
        total = total + cells.sum(1, dtype=torch.float64)
        product = product + (cells @ cells.T).double()
        count += cells.shape[1]
    if count == 0:
        raise InputError("No valid pixel in the searched scenes to learn their background from.")
    mean = total / count
    covariance = product / count - torch.outer(mean, mean)
    channels = len(mean)
    level = covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:dimensions].clamp(min=0), vectors.flip(1)[:, :dimensions]
    scaled = (1 - shrinkage) * values + shrinkage * level
    # Features that never vary have no axes to scale: a floor keeps them finite.
    scaled = scaled.clamp(min=float(level) * 1e-6 + 1e-12)
    assert vectors.shape[0] == channels
    return Whitening(mean.float(), (vectors / scaled.sqrt()).float())
