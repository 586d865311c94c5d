"""From a template's raw score to a probability, without any labelled scene.

Two things are known before a search: how the exemplars score each other when each is left out in turn, and how random
places of the searched scenes score. The threshold is what few random places reach, or, where the exemplars resemble
each other closely, a part of what they score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The probability that stands at the threshold.
AT_THRESHOLD = 0.3
# Of random places, so many score below what counts as ordinary.
ORDINARY = 0.99
# Of what an exemplar scores by the others, so much is asked of a place.
ASKED = 0.6
# A single exemplar cannot be left out: the threshold is then this many times what is ordinary.
ALONE = 1.3
# What a score is no nearer to 1 than: there it says how much was resembled no more.
CERTAIN = 1 - 1e-9
# Where even that is unknown, in scenes too small to sample.
FALLBACK = 0.15


@dataclass(frozen=True)
class ScoreCurve:
    """Probability as a logistic function of the raw score's logarithm: two floats.

    Attributes:
        threshold: raw score at which the probability is 0.3; above 0.
        steepness: of the logistic.
    """

    threshold: float = FALLBACK
    steepness: float = 6.0

    def __call__(self, raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Raw scores of any shape to probabilities in 0..1."""
        odds = AT_THRESHOLD / (1 - AT_THRESHOLD) * (np.maximum(raw, 0) / self.threshold) ** self.steepness
        return odds / (1 + odds)

    def raw(self, probability: float) -> float:
        """The raw score of a probability in 0..1."""
        if probability >= 1:
            return float("inf")
        return float(self.raws(np.array([probability]))[0])

    def raws(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """`raw` of many, each below 1."""
        odds = probabilities / (1 - probabilities) * (1 - AT_THRESHOLD) / AT_THRESHOLD
        return np.asarray(self.threshold * odds ** (1 / self.steepness))


def fit_curve(left_out: npt.NDArray[np.float64], background: npt.NDArray[np.float64]) -> ScoreCurve:
    """The curve of a class.

    Args:
        left_out: score of each exemplar by the others; empty for a single exemplar.
        background: scores at random places of the searched scenes, or of the local maxima there; may be empty.
    """
    ordinary = max(float(np.quantile(background, ORDINARY)), 1e-3) if len(background) else None
    asked = max(ASKED * float(np.median(left_out)), 1e-3) if len(left_out) else None
    if asked is not None:
        return ScoreCurve(max(asked, ordinary or 0.0))
    return ScoreCurve(ALONE * ordinary) if ordinary is not None else ScoreCurve()
