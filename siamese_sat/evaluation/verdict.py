"""What a person should look at to see what a search does well and badly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from siamese_sat.evaluation.matching import iou_of, match, nearest
from siamese_sat.evaluation.tables import BOX, FloatArray, IntArray, numbers

OTHER = ["other_x_min", "other_y_min", "other_x_max", "other_y_max"]


@dataclass(frozen=True)
class Verdict:
    """What was right and wrong about one class at IoU 0.5.

    The tables hold the few boxes to look at, what tells most first, with filename, ``score``, the corners of the other
    box that belongs to them (OTHER, NaN where there is none) and ``iou`` with it (0 there); those of
    detections also with their ``row``, where they were given with one.

    Attributes:
        found: reported detections that found an object, the surest first; the other box is that object.
        missed: objects that no reported detection found. First those that no detection of any score found (the largest
            of them first: they are the plainest to see), then those found with the lowest score, which a lower
            threshold would report. The other box is the detection that found it, or else overlaps it most, at any
            score; the score is that one's.
        false: reported detections that found none, the surest first; the other box is the object that they overlap
            most. With an IoU of 0.5 or more it was found already.
        counts: how many there are of ``found``, ``missed`` and ``false`` in all.
    """

    found: pd.DataFrame
    missed: pd.DataFrame
    false: pd.DataFrame
    counts: Mapping[str, int]


def judge(
    ranked: pd.DataFrame, truth: pd.DataFrame, thresholds: Mapping[str, float], most: int = 8
) -> dict[str, Verdict]:
    """Sorts detections and objects into found, missed and false, class by class.

    Args:
        ranked: detections at any score, those below the threshold too; with ``row`` where they have a number by which a
            user calls them.
        truth: the objects.
        thresholds: by class; what scores as much is reported.
        most: rows of a table at most.

    Returns:
        By class, in alphabetical order, of the classes that have an object or a reported detection.

    Raises:
        InputError: a column is missing or a number is not finite.
    """
    ranked, truth = match(ranked, truth).reset_index(drop=True), truth.reset_index(drop=True)
    score, index = numbers(ranked, "score"), ranked["truth_index"].to_numpy()
    hit = index >= 0
    reported = score >= np.array([thresholds[name] for name in ranked["class_name"]], dtype=float)
    finder = np.full(len(truth), -1, dtype=np.int64)
    finder[index[hit]] = np.flatnonzero(hit)
    scored = np.where(finder >= 0, score[finder] if len(score) else 0.0, 0.0)
    unseen = ~np.isin(np.arange(len(truth)), index[hit & reported])
    area = (numbers(truth, BOX)[:, 2:] - numbers(truth, BOX)[:, :2]).prod(axis=1)
    rows = {
        "found": _in_order(np.flatnonzero(hit & reported), -score),
        "missed": _in_order(np.flatnonzero(unseen), -area, scored),
        "false": _in_order(np.flatnonzero(~hit & reported), -score),
    }
    names = {"found": ranked["class_name"], "missed": truth["class_name"], "false": ranked["class_name"]}
    result = {}
    for name in sorted({*truth["class_name"], *ranked["class_name"][reported]}):
        mine = {kind: rows[kind][(names[kind].to_numpy() == name)[rows[kind]]] for kind in rows}
        top = {kind: numbered[:most] for kind, numbered in mine.items()}
        found, lost, false = ranked.iloc[top["found"]], truth.iloc[top["missed"]], ranked.iloc[top["false"]]
        near = np.where(finder[top["missed"]] >= 0, finder[top["missed"]], nearest(lost, ranked)[0])
        lost = lost.assign(score=np.where(near >= 0, score[near] if len(score) else 0.0, np.nan))
        result[name] = Verdict(
            _beside(found, truth, index[top["found"]]),
            _beside(lost, ranked, near),
            _beside(false, truth, nearest(false, truth)[0]),
            {kind: len(numbered) for kind, numbered in mine.items()},
        )
    return result


def _in_order(rows: IntArray, *keys: FloatArray) -> IntArray:
    """Row numbers by the last key, ties by those before it."""
    return rows[np.lexsort([key[rows] for key in keys])]


def _beside(table: pd.DataFrame, others: pd.DataFrame, place: IntArray) -> pd.DataFrame:
    """The table with the box of ``others`` that belongs to every row (-1 for none), and their IoU."""
    boxes = np.full((len(table), 4), np.nan)
    boxes[place >= 0] = numbers(others, BOX)[place[place >= 0]]
    pairs = iou_of(numbers(table, BOX), boxes).diagonal()
    columns = [*BOX, "filename", "score", *(["row"] if "row" in table else [])]
    return table[columns].assign(iou=pairs, **dict(zip(OTHER, boxes.T, strict=True))).reset_index(drop=True)
