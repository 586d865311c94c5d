"""Whether scores mean what they say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from siamese_sat.errors import InputError

# A search that ranks everything leaves thousands of places near 0, which are right to say "never": counted with the
# others they would bring any error close to 0. What scores less than this nobody looks at, whatever the threshold.
FLOOR = 0.05


def detection_reliability(scores: npt.ArrayLike, hits: npt.ArrayLike, floor: float = FLOOR) -> pd.DataFrame:
    """``reliability`` of the detections that somebody might look at.

    Counted are all that score at least ``floor``, also those below the threshold in use: whether that threshold is
    the right one is what the diagram should tell. An object that was found twice counts as right once, as COCO
    has it. This is the D-ECE of Küppers et al. (2020, "Multivariate Confidence Calibration for Object Detection")
    over score alone, in bins of a tenth; they too leave out what scores little.

    Args:
        scores: of one class, ``[n]``, at any score.
        hits: whether each found an object that none before it had found, ``[n]``.
        floor: the least score that counts.

    Returns:
        As ``reliability``; a table that counts nothing where a score is no probability in [0, 1].
    """
    score, hit = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=bool)
    if not ((score >= 0) & (score <= 1)).all():
        score, hit = score[:0], hit[:0]
    return reliability(score[score >= floor], hit[score >= floor])


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
    edges = np.arange(bins + 1) / bins  # 7 / 10 is 0.7; linspace comes to 0.7000000000000001
    place = np.searchsorted(edges[1:-1], score, side="right")
    count = np.bincount(place, minlength=bins)
    means = [np.bincount(place, values, bins) / np.where(count, count, np.nan) for values in (score, hit)]
    centres = (edges[:-1] + edges[1:]) / 2
    return pd.DataFrame({"bin": centres, "mean_score": means[0], "precision": means[1], "count": count})


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error of ``reliability``'s table, in [0, 1]; NaN when it counts nothing."""
    gap = (table["mean_score"] - table["precision"]).abs() * table["count"]
    return float(gap.sum() / table["count"].sum()) if table["count"].any() else np.nan
