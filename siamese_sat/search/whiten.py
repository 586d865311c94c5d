"""What is ordinary in the searched scenes, taken out of their features so that the rest stands out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
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
        """Features ``[C, H, W]`` to whitened cells ``[D, H, W]`` in float32.

        The product is made in the features' own precision. Their norm comes after it, and a cell's channels stay
        together: neither the network's layout nor its precision is copied into another.
        """
        _, height, width = features.shape
        cells = features.permute(1, 2, 0).flatten(0, 1)
        length = torch.linalg.vector_norm(cells, dim=1, keepdim=True, dtype=torch.float32).clamp(min=1e-12)
        # axes' (cells / length - mean) = axes' cells / length - axes' mean.
        white: Tensor = (cells @ self.axes.to(cells.dtype)).float() / length - self.mean @ self.axes
        return white.view(height, width, -1).permute(2, 0, 1)


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
