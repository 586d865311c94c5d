"""What was found, missed and falsely found of a class, as chips."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from siamese_sat.data.scene import Scene
from siamese_sat.evaluation.tables import BOX
from siamese_sat.evaluation.verdict import OTHER, Verdict
from siamese_sat.report.render import (
    NO_DATA_GREY,
    Preview,
    new_figure,
    plain,
    preview,
    save,
    shown_bands,
    stretch_limits,
    to_rgb,
)

CELL, GAP, UNDER, GUTTER, HEAD, EMPTY = 132, 10, 34, 128, 34, 52  # picture pixels
SURROUNDINGS = 2.0  # side of a chip as a multiple of the box's longer side
LEAST = 32  # of that side, in scene pixels: a thing of a few pixels is nothing without what lies round it
ROWS = {"found": "surest first", "missed": "least found first", "false": "surest first"}


class Chip(NamedTuple):
    """A row of a verdict's table and the part of its scene that is shown.

    Attributes:
        row: of the table.
        window: x_min, y_min, x_max, y_max in scene pixels, which may reach beyond the scene.
        view: what of the window lies in the scene.
    """

    row: pd.Series
    window: tuple[int, int, int, int]
    view: Preview


def verdict_sheet(
    name: str,
    verdict: Verdict,
    threshold: float,
    scenes: Mapping[str, Scene],
    path: str | Path,
    colour: str,
    rgb: Sequence[int] = (2, 1, 0),
) -> Path:
    """Draws three rows of chips: what was found, what was missed, what was falsely found.

    Detections are solid in the class's colour, truth is dashed white; under each chip stand the detection's row in
    detections.csv, its score and the IoU of both. Only the chips' own windows are read, decimated where they are larger
    than the picture needs.

    Args:
        name: of the class.
        verdict: of the class.
        threshold: from which a detection was reported.
        scenes: the scene behind every ``filename``.
        path: PNG to write.
        colour: of the class.
        rgb: which of the scenes' bands become red, green and blue, counted from 0.

    Raises:
        InputError: a scene cannot be read or lacks a band, or the picture cannot be written.
    """
    tables = {"found": verdict.found, "missed": verdict.missed, "false": verdict.false}
    chips = {kind: [_cut(row, scenes, rgb) for _, row in table.iterrows()] for kind, table in tables.items()}
    limits = _limits([chip for row in chips.values() for chip in row])
    columns = max(4, *(len(row) for row in chips.values()))
    tops = np.cumsum([HEAD] + [CELL + UNDER if row else EMPTY for row in chips.values()])
    width, height = GUTTER + columns * (CELL + GAP) + GAP, int(tops[-1])
    figure = new_figure(width, height)
    objects, reported = (verdict.counts["found"] + verdict.counts[kind] for kind in ("missed", "false"))
    of = {"found": f"of {objects} objects", "missed": f"of {objects} objects", "false": f"of {reported} reported"}
    for top, (kind, row) in zip(tops.tolist(), chips.items(), strict=False):
        said = f"{verdict.counts[kind]} {of[kind]}\n{ROWS[kind] if row else ''}"
        _write(figure, GUTTER - 12, top + 2, kind, size=10.5, ha="right", weight="bold", color="#222222")
        _write(figure, GUTTER - 12, top + 22, said, size=7.2, ha="right", color="#666666", linespacing=1.5)
        if not row:
            _write(figure, GUTTER, top + 2, "none", size=9, color="#777777")
        for place, chip in enumerate(row):
            x = GUTTER + place * (CELL + GAP)
            box = (x / width, 1 - (top + CELL) / height, CELL / width, CELL / height)
            _draw(figure.add_axes(box), chip, limits[chip.row["filename"]], kind, colour)
            middle = x + CELL / 2
            _write(figure, middle, top + CELL + 3, _title(chip.row, kind), size=7.4, ha="center", color="#222222")
            scene = textwrap.shorten(str(chip.row["filename"]).rsplit("/", 1)[-1], 24, placeholder="\u2026")
            _write(figure, middle, top + CELL + 16, plain(scene), size=6.2, ha="center", color="#888888")
    _write(figure, 8, 7, plain(f"{name}, threshold {threshold:.2f}"), size=10.5, weight="bold", color="#222222")
    handles = [
        Line2D([], [], color=colour, lw=2.4, label="detection"),
        Line2D([], [], color="#555555", lw=1.2, ls=(0, (4, 2)), label="truth"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=2, frameon=False, fontsize=8, borderaxespad=0.5)
    return save(figure, path)


def _cut(row: pd.Series, scenes: Mapping[str, Scene], rgb: Sequence[int]) -> Chip:
    scene = scenes[str(row["filename"])]
    x0, y0, x1, y1 = (float(row[corner]) for corner in BOX)
    half = max(LEAST, SURROUNDINGS * max(x1 - x0, y1 - y0)) / 2
    left, top = int(np.floor((x0 + x1) / 2 - half)), int(np.floor((y0 + y1) / 2 - half))
    side = int(np.ceil(2 * half))
    window = (left, top, left + side, top + side)
    bands = shown_bands(len(scene.bands), rgb)
    return Chip(row, window, preview(scene.within(window), 2 * CELL, bands))


def _limits(chips: Sequence[Chip]) -> dict[str, npt.NDArray[np.float64]]:
    """One stretch for all chips of a scene: by its own pixels alone a chip of calm sea would be nothing but noise."""
    found = {}
    for name in {chip.row["filename"] for chip in chips}:
        views = [chip.view for chip in chips if chip.row["filename"] == name]
        pixels = np.concatenate([view.pixels.reshape(len(view.pixels), 1, -1) for view in views], axis=2)
        valid = np.concatenate([view.valid.reshape(1, -1) for view in views], axis=1)
        found[name] = stretch_limits(pixels, valid, tuple(range(len(pixels))))
    return found


def _draw(axes: Axes, chip: Chip, limits: npt.NDArray[np.float64], kind: str, colour: str) -> None:
    view, row = chip.view, chip.row
    image = to_rgb(view.pixels, view.valid, tuple(range(len(view.pixels))), limits)
    right, bottom = view.left + image.shape[1] / view.zoom_x, view.top + image.shape[0] / view.zoom_y
    # In the scene's own pixels, so that boxes need no conversion and are cut where the chip ends.
    axes.imshow(image, extent=(view.left, right, bottom, view.top), interpolation="nearest", aspect="auto")
    axes.set_facecolor(str(NO_DATA_GREY / 255))
    axes.set(xlim=chip.window[::2], ylim=chip.window[3::-2], xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    detection, truth = (OTHER, BOX) if kind == "missed" else (BOX, OTHER)
    effects = [Stroke(linewidth=2.6, foreground=(0, 0, 0, 0.55)), Normal()]
    # Dashes on top: where both boxes have the same edge, both are seen.
    for corners, line, style in ((detection, colour, "solid"), (truth, "white", (0, (4, 2)))):
        x0, y0, x1, y1 = (float(row[corner]) for corner in corners)
        if np.isfinite(x0):
            frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=line, lw=1.4, ls=style, path_effects=effects)
            axes.add_patch(frame)


def _title(row: pd.Series, kind: str) -> str:
    if np.isnan(row["score"]):
        return "nothing there"
    number = row.get("row", np.nan)
    both = f"{row['score']:.2f}" if np.isnan(number) else f"row {number:.0f}:  {row['score']:.2f}"
    if row["iou"] > 0:
        both += f"   IoU {row['iou']:.2f}"
    return f"{both}, again" if kind == "false" and row["iou"] >= 0.5 else both


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:  # noqa: ANN401 - of matplotlib.text.Text
    """Text whose upper end is ``y`` pixels below the figure's."""
    width, height = figure.get_size_inches() * figure.dpi
    figure.text(x / width, 1 - y / height, text, va="top", **style)
