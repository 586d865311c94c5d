"""Many chips on one sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from siamese_sat.report.render import new_figure, plain, save, to_rgb

GAP = 4
GUTTER = 140


def contact_sheet(
    chips: npt.NDArray[np.generic],
    classes: Sequence[str],
    path: str | Path,
    titles: Sequence[str] | None = None,
    per_row: int = 10,
    rgb: Sequence[int] = (2, 1, 0),
    limits: npt.NDArray[np.float64] | None = None,
) -> Path:
    """Draws chips side by side, a block of rows per class, the class at its left.

    Args:
        chips: ``[N, C, S, S]``; pixels that are zero in all bands count as empty.
        classes: the class of every chip; blocks stand in the order in which classes first appear.
        path: PNG to write.
        titles: a short text under every chip, such as a score, or None.
        per_row: chips in a row.
        rgb: which bands become red, green and blue, counted from 0.
        limits: from ``stretch_limits``; None stretches all chips alike, by their own pixels.

    Raises:
        ValueError: ``classes`` or ``titles`` are not as many as the chips.
        InputError: a band is missing, or the picture cannot be written.
    """
    if len(classes) != len(chips) or (titles is not None and len(titles) != len(chips)):
        raise ValueError(f"{len(chips)} chips need as many classes and titles")
    names = np.array(classes, dtype=object)
    order = [np.flatnonzero(names == name) for name in dict.fromkeys(classes)]
    side = chips.shape[-1]
    factor = max(1, round(96 / side))
    cell, under = side * factor, 16 if titles is not None else 0
    columns = min(per_row, max((len(mine) for mine in order), default=1))
    step = cell + under + GAP
    tops = np.cumsum([12] + [-(-len(mine) // columns) * step + 14 for mine in order])
    canvas = np.full((max(int(tops[-1]), 40), GUTTER + columns * (cell + GAP) + 8, 3), 255, dtype=np.uint8)

    # One tall picture of all chips, so that one stretch serves all.
    tall = chips.transpose(1, 0, 2, 3).reshape(chips.shape[1], -1, side)
    valid = np.isfinite(tall).all(axis=0) & (tall != 0).any(axis=0)
    shown = to_rgb(tall, valid, rgb, limits).reshape(-1, side, side, 3)
    figure = new_figure(canvas.shape[1], canvas.shape[0])
    axes = figure.add_axes((0, 0, 1, 1))
    for top, mine in zip(tops, order, strict=False):
        for place, chip in enumerate(mine):
            row, column = divmod(place, columns)
            y, x = int(top) + row * step, GUTTER + column * (cell + GAP)
            canvas[y : y + cell, x : x + cell] = shown[chip].repeat(factor, axis=0).repeat(factor, axis=1)
            if titles is not None:
                title = plain(titles[int(chip)])
                axes.text(x + cell / 2, y + cell + 2, title, size=6.6, ha="center", va="top", color="#444444")
        name = textwrap.fill(names[mine[0]], 15)
        axes.text(GUTTER - 10, top + 2, plain(name), size=9, ha="right", va="top", weight="bold", color="#222222")
        count = f"{len(mine)} chip{'' if len(mine) == 1 else 's'}"
        axes.text(
            GUTTER - 10, top + 8 + 15 * (name.count("\n") + 1), count, size=7, ha="right", va="top", color="#777777"
        )
    axes.imshow(canvas, extent=(0, canvas.shape[1], canvas.shape[0], 0), interpolation="none", aspect="auto")
    axes.set_axis_off()
    return save(figure, path)
