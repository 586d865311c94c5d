"""Whether scores mean what they say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from siamese_sat.errors import InputError


def reliability(scores: npt.ArrayLike, hits: npt.ArrayLike, bins: int = 10) -> pd.DataFrame:
    """How often detections of each score are right (a reliability diagram).

    Args:
        scores: probabilities ``[n]``.
        hits: whether each was right, ``[n]``.
        bins: number of bins of equal width; a score on an edge belongs to the bin above.

    Returns:
        One row per bin: ``bin`` (centre), ``mean_score``, ``precision`` (both NaN if empty), ``count``.

    Raises:
        InputError: a score lies outside [0, 1].
    """
    score, hit = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    if not ((score >= 0) & (score <= 1)).all():
        raise InputError("Reliability needs probabilities: give scores between 0 and 1.")
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], score, side="right")
    count = np.bincount(place, minlength=bins)
    means = [np.bincount(place, values, bins) / np.where(count, count, np.nan) for values in (score, hit)]
    centres = (edges[:-1] + edges[1:]) / 2
    return pd.DataFrame({"bin": centres, "mean_score": means[0], "precision": means[1], "count": count})


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error of ``reliability``'s table, in [0, 1]; NaN when it counts nothing."""
    gap = (table["mean_score"] - table["precision"]).abs() * table["count"]
    return float(gap.sum() / table["count"].sum()) if table["count"].any() else np.nan
