"""Tables of boxes as an evaluation takes them: their columns, their check, their order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from siamese_sat.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

BOX = ["x_min", "y_min", "x_max", "y_max"]
TRUTH = [*BOX, "class_name", "filename"]
DETECTIONS = [*TRUTH, "score"]


def checked(
    table: pd.DataFrame, columns: list[str], images: Mapping[str, tuple[int, int]] | None = None
) -> pd.DataFrame:
    """The table itself, or one that has the columns where it is empty and lacks them.

    Args:
        table: boxes in pixels, half-open.
        columns: TRUTH or DETECTIONS.
        images: the images searched by file name; None takes any.

    Raises:
        InputError: a column is missing, a number is not finite, or a file is not among ``images``.
    """
    kind = "Detections" if "score" in columns else "Truth"
    lacking = [column for column in columns if column not in table]
    if lacking and len(table):
        raise InputError(f"{kind} must have the column(s) {', '.join(lacking)} too.")
    table = table.assign(**{column: [] for column in lacking})
    if not np.isfinite(numbers(table, [column for column in columns if column in (*BOX, "score")])).all():
        raise InputError(f"{kind} must have finite boxes and scores; remove the rows that have not.")
    if images is not None and (unknown := set(table["filename"]) - set(images)):
        raise InputError(f"{kind} name {min(unknown)}, which is not among the {len(images)} images searched.")
    return table


def numbers(table: pd.DataFrame, columns: str | list[str]) -> FloatArray:
    """One column ``[n]`` or several ``[n, columns]`` as float64, whatever type an empty table has."""
    return table[columns].to_numpy(dtype=np.float64)


def best_first(detections: pd.DataFrame) -> IntArray:
    """Row numbers ``[n]``, best score first, ties by file name and then by box."""
    files = pd.factorize(detections["filename"], sort=True)[0]
    keys = (*numbers(detections, BOX).T, files, -numbers(detections, "score"))
    return np.lexsort(keys).astype(np.int64)
