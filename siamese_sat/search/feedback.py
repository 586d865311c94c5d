"""Rows of an earlier detections.csv as exemplars: more like these, less like those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.search.detect import COLUMNS
from siamese_sat.search.exemplar import Exemplar


def rows_as_exemplars(path: str, rows: Sequence[int], scene_of: Callable[[str], Scene], setting: str) -> list[Exemplar]:
    """Detections as exemplars.

    Args:
        path: of a detections.csv, with a header or in the original's seven columns.
        rows: numbers from 0, in the order of the file.
        scene_of: the scene that a ``filename`` means.
        setting: that named the rows, for messages.

    Raises:
        InputError: the file is missing or no detections.csv, or has no such row.
    """
    frame = read_detections(path)
    strange = [r for r in rows if not isinstance(r, int) or not 0 <= r < len(frame)]
    if strange:
        raise InputError(f"{path}: {setting} names row {strange[0]!r}, but the rows are 0 to {len(frame) - 1}.")
    chosen = frame.iloc[list(rows)]
    boxes = chosen[COLUMNS[:4]].to_numpy(float).tolist()
    return [
        Exemplar(str(name), scene_of(str(file)), (x0, y0, x1, y1))
        for name, file, (x0, y0, x1, y1) in zip(chosen.class_name, chosen.filename, boxes, strict=True)
    ]


def read_detections(path: str) -> pd.DataFrame:
    """A detections.csv as a table; columns beyond the seven are left as they are.

    Raises:
        InputError: it is missing, or something else.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{path}: no such file; feedback.detections names the detections.csv of an earlier search.")
    try:
        with file.open(encoding="utf-8") as stream:
            headed = stream.readline().startswith("x_min")
        frame = pd.read_csv(file) if headed else pd.read_csv(file, header=None, names=COLUMNS)
        frame[COLUMNS[:4]] = frame[COLUMNS[:4]].astype(float)
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no detections.csv of a search (x_min, y_min, ... score).") from error
    return frame
