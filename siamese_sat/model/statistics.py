"""Mean and covariance of a stage's features: what is ordinary, in numbers that can be kept and joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FeatureStatistics:
    """Of feature cells of unit length.

    Attributes:
        count: cells seen.
        mean: ``[C]`` float64.
        covariance: ``[C, C]`` float64, about that mean.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    def leaning_on(self, other: FeatureStatistics, enough: int) -> FeatureStatistics:
        """With fewer than ``enough`` cells, the other's statistics make up for the rest; else these themselves.

        The mixture's mean and covariance, the two weighted by ``count / enough`` and its complement.
        """
        own = min(1.0, self.count / enough)
        if own == 1:
            return self
        off = self.mean - other.mean
        covariance = own * self.covariance + (1 - own) * other.covariance + own * (1 - own) * torch.outer(off, off)
        return FeatureStatistics(self.count + other.count, own * self.mean + (1 - own) * other.mean, covariance)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and fp32 tensors, as a checkpoint carries them."""
        return {"count": self.count, "mean": self.mean.float(), "covariance": self.covariance.float()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureStatistics:
        """The inverse of `to_dict`."""
        return cls(int(values["count"]), values["mean"].double(), values["covariance"].double())


def measure(samples: Iterable[Tensor]) -> FeatureStatistics | None:
    """Statistics of features ``[C, H, W]``, streamed; None where there is no sample."""
    count = 0
    total, product = torch.zeros(()), torch.zeros(())
    for sample in samples:
        cells = F.normalize(sample.reshape(sample.shape[0], -1), dim=0)
        total = total + cells.sum(1, dtype=torch.float64)
        product = product + (cells @ cells.T).double()
        count += cells.shape[1]
    if count == 0:
        return None
    mean = total / count
    return FeatureStatistics(count, mean, product / count - torch.outer(mean, mean))
