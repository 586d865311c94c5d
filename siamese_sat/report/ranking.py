"""The best finds of each class side by side: an answer to "show me what is like this"."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from siamese_sat.data.chip import resize
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.report.place import PIXELS
from siamese_sat.report.sheet import contact_sheet

log = logging.getLogger(__name__)

SIDE = 96
# Of the box's longer side, shown on every side of it.
AROUND = 0.25


def ranking_sheet(
    detections: pd.DataFrame, scenes: Mapping[str, Scene], path: Path, classes: Sequence[str], rgb: Sequence[int]
) -> Path | None:
    """Draws a chip of every detection, class by class, best first, its score beneath.

    Args:
        detections: one row per box, best first.
        scenes: the scene behind every ``filename``; those that cannot be read any more are left out.
        path: PNG to write.
        classes: in which order.
        rgb: which bands become red, green and blue, counted from 0.

    Returns:
        ``path``, or None where there is nothing to show.

    Raises:
        InputError: the picture cannot be written.
    """
    chips: dict[int, npt.NDArray[np.float32]] = {}
    for filename, rows in detections.groupby("filename", sort=False):
        try:
            with SceneReader(scenes[str(filename)]) as reader:
                for number, box in zip(rows.index, rows[PIXELS].to_numpy(float), strict=True):
                    chips[int(number)] = _chip(reader, box)
        except InputError as error:
            log.warning("Not in the contact sheet: %s", error)
    order = [i for name in classes for i in detections.index[detections.class_name == name] if i in chips]
    if not order:
        return None
    names = [str(detections.class_name[i]) for i in order]
    titles = [f"{detections.score[i]:.2f}" for i in order]
    return contact_sheet(np.stack([chips[i] for i in order]), names, path, titles, rgb=rgb)


def _chip(reader: SceneReader, box: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """``[C, SIDE, SIDE]``, the box in its middle, zero where nothing is."""
    x0, y0, x1, y1 = box
    side = max(4, math.ceil(max(x1 - x0, y1 - y0) * (1 + 2 * AROUND)))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    pixels, valid = reader.read(left, top, side, side)
    shown = torch.from_numpy(np.where(valid, pixels, 0).astype(np.float32))
    return resize(shown[None], SIDE, SIDE)[0].numpy()
