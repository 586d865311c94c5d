"""What validation embeddings say: figures over fixed batches, retrieval, prototypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor

from siamese_sat.data.sampler import PKSampler

MOST_CHIPS = 8_000


def retrieval(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """How well chips find their like among the others.

    Args:
        embeddings: ``[N, D]`` of unit length.
        labels: ``[N]``.

    Returns:
        ``recall_at_1`` and ``map_at_r`` (Musgrave et al. 2020, A Metric Learning Reality Check), and
        ``prototype_accuracy``, see `prototype_accuracy`; each in 0..1, NaN where no class has two chips.
    """
    accuracy = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=embeddings.device,
        # The default wants faiss.
        knn_func=CustomKNN(CosineSimilarity(), batch_size=1024),
    )
    if len(labels) > MOST_CHIPS:  # neighbours grow with the square; an even sample ranks epochs as well
        every = torch.arange(MOST_CHIPS, device=labels.device) * len(labels) // MOST_CHIPS
        embeddings, labels = embeddings[every], labels[every]
    if len(labels) < 2 or int(torch.bincount(labels).max()) < 2:
        return dict.fromkeys(("recall_at_1", "map_at_r", "prototype_accuracy"), math.nan)
    found = accuracy.get_accuracy(embeddings, labels)
    return {
        "recall_at_1": float(found["precision_at_1"]),
        "map_at_r": float(found["mean_average_precision_at_r"]),
        "prototype_accuracy": prototype_accuracy(embeddings, labels),
    }


def prototype_accuracy(embeddings: Tensor, labels: Tensor) -> float:
    """Part of chips whose nearest class prototype is their own class's, its own chip left out of it.

    Classes with one chip have no prototype without it: they are candidates for the others, but not asked.
    """
    classes, index = labels.unique(return_inverse=True)
    onehot = F.one_hot(index, len(classes)).to(embeddings.dtype)
    sums, counts = onehot.T @ embeddings, onehot.sum(0)
    scores = embeddings @ F.normalize(sums, dim=1).T
    own = F.normalize(sums[index] - embeddings, dim=1)
    scores[torch.arange(len(labels)), index] = (own * embeddings).sum(1)
    asked = counts[index] > 1
    if not asked.any():
        return math.nan
    return float((scores.argmax(1) == index)[asked].float().mean())


def fixed_batch_means(
    embeddings: Tensor, labels: Tensor, figures: Callable[[Tensor, Tensor], Mapping[str, Tensor]], seed: int
) -> dict[str, float]:
    """Mean of a batch's figures over P x K batches of validation embeddings, the same batches at every epoch.

    The embeddings stand already, so a batch costs its loss only; batch-hard mining over all of them at once would be
    a harder and differently sized problem than the one that is trained.

    Args:
        embeddings: ``[N, D]`` of unit length.
        labels: ``[N]``.
        figures: called with the embeddings and labels of a batch; gives scalars by name.
        seed: of the batches.
    """
    sampler = PKSampler(labels.tolist(), seed=seed, num_replicas=1, rank=0)
    sampler.length = max(sampler.length, 32)
    found = [figures(embeddings[b], labels[b]) for b in sampler]
    return {name: float(torch.stack([f[name].detach() for f in found]).mean()) for name in found[0]}
