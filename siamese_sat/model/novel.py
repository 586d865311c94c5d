"""How well classes that training never saw are found from a few chips: what a search for something new is like."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score
from torch import Tensor

EXEMPLARS = 5
DRAWS = 10


def novel_retrieval(embeddings: Tensor, labels: Tensor, known: int, seed: int = 0) -> dict[str, float]:
    """Retrieval of held-out classes among all validation chips, background and trained classes included.

    Args:
        embeddings: ``[N, D]`` of unit length.
        labels: ``[N]`` class numbers; those from ``known`` on are of held-out classes.
        known: how many classes are trained.
        seed: of the exemplars; one seed draws the same at every epoch.

    Returns:
        ``novel_recall_at_1``: part of held-out chips whose nearest other chip is of their class; ``novel_ap``: see
        `few_shot_ap`, mean over held-out classes. Both in 0..1; nothing where no held-out class has two chips.
    """
    embeddings, labels = embeddings.float().cpu(), labels.cpu()
    classes, counts = labels[labels >= known].unique(return_counts=True)
    classes = classes[counts > 1]
    if not len(classes):
        return {}
    asked = torch.isin(labels, classes)
    accuracy = AccuracyCalculator(
        include=("precision_at_1",),
        k=1,
        device=embeddings.device,
        knn_func=CustomKNN(CosineSimilarity(), batch_size=1024),
    )
    found = accuracy.get_accuracy(
        embeddings[asked],
        labels[asked],
        torch.cat([embeddings[asked], embeddings[~asked]]),  # it wants the queries first
        torch.cat([labels[asked], labels[~asked]]),
        ref_includes_query=True,
    )
    precision = [few_shot_ap(embeddings, labels == c, [seed, int(c)]) for c in classes]
    return {"novel_recall_at_1": float(found["precision_at_1"]), "novel_ap": float(np.mean(precision))}


def few_shot_ap(
    embeddings: Tensor, members: Tensor, seed: int | list[int], exemplars: int = EXEMPLARS, draws: int = DRAWS
) -> float:
    """Mean average precision of all other chips ranked by cosine to the average of a few exemplars of a class.

    The average as prototype is Snell et al. 2017, equation 1.

    Args:
        embeddings: ``[N, D]`` of unit length.
        members: ``[N]``, True for chips of the class, two at least.
        seed: of the draws.
        exemplars: chips of the class in a draw; one fewer than it has, where it has no more.
        draws: how many; exemplars are left out of the ranking of their draw.

    Returns:
        0..1; what chance gives is the class's part of the chips.
    """
    rng = np.random.default_rng(seed)
    places = torch.nonzero(members)[:, 0]
    count = min(exemplars, len(places) - 1)
    precision = []
    for _ in range(draws):
        shown = places[torch.from_numpy(rng.permutation(len(places))[:count])]
        prototype = F.normalize(embeddings[shown].mean(0), dim=0)
        rest = torch.ones_like(members)
        rest[shown] = False
        score = (embeddings @ prototype)[rest].numpy()
        precision.append(average_precision_score(members[rest].numpy(), score))
    return float(np.mean(precision))
