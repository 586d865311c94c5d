"""What is ordinary in the searched scenes, taken out of their features so that the rest stands out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.errors import InputError
from siamese_sat.model.statistics import FeatureStatistics, measure


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
    """Whitening by the background's mean and covariance, streamed.

    Args:
        samples: features ``[C, H, W]`` of background.
        dimensions: see `whiten`.
        shrinkage: see `whiten`.

    Raises:
        InputError: there is no sample, or see `whiten`.
    """
    found = measure(samples)
    if found is None:
        raise InputError("No valid pixel in the searched scenes to learn their background from.")
    return whiten(found, dimensions, shrinkage)


def whiten(statistics: FeatureStatistics, dimensions: int = 128, shrinkage: float = 0.1) -> Whitening:
    """Whitening with shrinkage (Ledoit and Wolf 2004).

    Args:
        statistics: of the background.
        dimensions: principal axes to keep; no more than C are.
        shrinkage: part of the mean variance mixed into every axis; 1 leaves a rotation only.

    Raises:
        InputError: shrinkage is outside 0..1, or dimensions below 1.
    """
    if not 0 <= shrinkage <= 1 or dimensions < 1:
        raise InputError("search.method: shrinkage must lie between 0 and 1, and dimensions be 1 or more.")
    level = statistics.covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(statistics.covariance)
    values, vectors = values.flip(0)[:dimensions].clamp(min=0), vectors.flip(1)[:, :dimensions]
    scaled = (1 - shrinkage) * values + shrinkage * level
    # Features that never vary have no axes to scale: a floor keeps them finite.
    scaled = scaled.clamp(min=float(level) * 1e-6 + 1e-12)
    return Whitening(statistics.mean.float(), (vectors / scaled.sqrt()).float())
