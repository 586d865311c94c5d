"""Signs of health that a loss alone does not show: how far apart chips lie, and how many triplets still teach."""

from __future__ import annotations

import math

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch import Tensor, nn


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine over all pairs of a batch ``[B, D]``: near 1 when all embeddings have become one."""
    count = len(embeddings)
    total = embeddings.sum(0).square().sum() - embeddings.square().sum()
    return total / (count * (count - 1))


@torch.no_grad()
def distances(embeddings: Tensor, labels: Tensor, margin: float = 0.0) -> dict[str, Tensor]:
    """How a batch lies in the embedding space.

    Args:
        embeddings: ``[B, D]`` of unit length.
        labels: ``[B]``.
        margin: by which the nearest negative must be farther than the farthest positive.

    Returns:
        ``positive_distance`` and ``negative_distance``: mean Euclidean distance, 0 to 2, of pairs of one class and of
        two. ``active_triplets``: part, 0 to 1, of anchors whose hardest triplet (Hermans et al. 2017, equation 5) has
        d(A,P) - d(A,N) + margin of 0 or more; a tie counts, so that a collapse is active without a margin too. Each is
        NaN where the batch has no such pair.
    """
    matrix = LpDistance()(embeddings)
    a, p, b, n = get_all_pairs_indices(labels)
    anchor, farthest, nearest = BatchHardMiner()(embeddings, labels)
    violation = matrix[anchor, farthest] - matrix[anchor, nearest] + margin
    return {
        "positive_distance": matrix[a, p].mean(),
        "negative_distance": matrix[b, n].mean(),
        "active_triplets": (violation >= 0).float().mean(),
    }


def triplet_margin(loss: nn.Module) -> float:
    """The margin of a triplet loss; 0 for any other, whose margin, where it has one, is no distance."""
    return float(loss.margin) if isinstance(loss, TripletMarginLoss) else 0.0


def plateau(loss: nn.Module) -> float | None:
    """What a triplet loss is when all embeddings are one: ln(1 + e^margin), or the margin itself without softplus.

    None for any other loss: what they are then depends on the batch.
    """
    if not isinstance(loss, TripletMarginLoss):
        return None
    margin = float(loss.margin)
    return math.log1p(math.exp(margin)) if loss.smooth_loss else margin
