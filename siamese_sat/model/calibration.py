"""From cosine similarity to the probability of being the same class: two floats, never a pickle."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

log = logging.getLogger(__name__)

FloatOrTensor = TypeVar("FloatOrTensor", npt.NDArray[np.float64], Tensor)
MIN_PAIRS = 20
MOST_PAIRS = 200_000
MOST_CHIPS = 4_000


@dataclass(frozen=True)
class Calibration:
    """``logistic``: 1 / (1 + exp(-(slope * s + intercept))) (Platt 1999); ``linear``: slope * s + intercept.

    Attributes:
        slope: above 0.
        intercept: any.
        kind: which of the two; linear with 0.5 and 0.5 is what stands in when nothing could be fitted.
    """

    slope: float = 0.5
    intercept: float = 0.5
    kind: Literal["logistic", "linear"] = "linear"

    def __call__(self, cosine: Tensor) -> Tensor:
        """Cosines of any shape to probabilities in 0..1 of the same shape."""
        line = cosine * self.slope + self.intercept
        return torch.sigmoid(line) if self.kind == "logistic" else line.clamp(0, 1)

    @property
    def fitted(self) -> bool:
        """Whether it says anything: False for what stands in when nothing could be fitted."""
        return self != Calibration()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint carries them."""
        return asdict(self)


@dataclass(frozen=True)
class PairSimilarity:
    """Cosines of validation pairs: of one class, and of two. Pairs within background are left out: nobody seeks it."""

    same: npt.NDArray[np.float64]
    different: npt.NDArray[np.float64]


def pair_similarity(embeddings: Tensor, labels: Tensor, background: int | None, seed: int = 0) -> PairSimilarity:
    """All pairs of validation chips, or a seeded sample of each kind where there are very many.

    Args:
        embeddings: ``[N, D]`` of unit length.
        labels: ``[N]``.
        background: its class number, or None.
        seed: of the sample.
    """
    if len(labels) > MOST_CHIPS:  # all pairs of more would not fit in memory
        drawn_chips = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels))[:MOST_CHIPS])
        embeddings, labels = embeddings[drawn_chips], labels[drawn_chips]
    cosine = embeddings @ embeddings.T
    same = labels[:, None] == labels[None, :]
    upper = torch.ones_like(same).triu(1)
    kinds = (same & (labels != (-1 if background is None else background))[:, None] & upper, ~same & upper)
    rng = np.random.default_rng(seed)
    drawn = []
    for kind in kinds:
        values = cosine[kind].double().cpu().numpy()
        drawn.append(values if len(values) <= MOST_PAIRS else rng.choice(values, MOST_PAIRS, replace=False))
    return PairSimilarity(*drawn)


def fit_calibration(pairs: PairSimilarity) -> Calibration:
    """Logistic regression of "same class" on cosine, both kinds weighing alike.

    Pairs of two classes outnumber pairs of one by far, and by how much depends on the label set, not on the search:
    hence the balance. Below 20 pairs of either kind, or where similarity says nothing, (s + 1) / 2 with a warning: then
    a search learns from its scenes what a score means, see `siamese_sat.search.ordinary`.
    """
    if min(len(pairs.same), len(pairs.different)) < MIN_PAIRS:
        log.warning(
            "Calibration needs %d validation pairs of either kind, there are %d and %d: searches will fit one.",
            MIN_PAIRS, len(pairs.same), len(pairs.different),
        )  # fmt: skip
        return Calibration()
    x = np.concatenate([pairs.same, pairs.different])[:, None]
    y = np.concatenate([np.ones(len(pairs.same)), np.zeros(len(pairs.different))])
    model = LogisticRegression(class_weight="balanced", C=1e4).fit(x, y)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        log.warning("Same-class pairs are no more alike than others: the training learned nothing to calibrate.")
        return Calibration()
    return Calibration(slope, intercept, "logistic")


def class_thresholds(scores: Tensor, labels: Tensor, classes: int, default: float = 0.3) -> list[float]:
    """The threshold of best F1 per class.

    Args:
        scores: ``[N, classes]`` calibrated scores of validation chips against the prototypes.
        labels: ``[N]``.
        classes: how many.
        default: for a class with fewer than three validation chips.
    """
    found = []
    for c in range(classes):
        truth = (labels == c).cpu().numpy()
        if truth.sum() < 3:
            found.append(default)
            continue
        mine = scores[:, c].double().cpu().numpy()
        order = np.argsort(-mine, kind="stable")
        hits = np.cumsum(truth[order])
        f1 = 2 * hits / (np.arange(1, len(mine) + 1) + truth.sum())
        f1[:-1][mine[order[:-1]] == mine[order[1:]]] = 0  # no threshold parts equal scores
        best = int(f1.argmax())
        below = mine[order[best + 1]] if best + 1 < len(mine) else 0.0
        found.append(float((mine[order[best]] + below) / 2))
    return found
