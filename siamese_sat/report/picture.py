"""The picture of a scene and what was found in it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import PolyCollection
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from siamese_sat.data.scene import Scene
from siamese_sat.report.colour import class_colours, ink_on
from siamese_sat.report.place import PIXELS
from siamese_sat.report.render import (
    Preview,
    new_figure,
    plain,
    preview,
    save,
    shown_bands,
    to_rgb,
)

Boxes = npt.NDArray[np.float64]

# Beyond so many boxes their labels hide more than they tell.
LABELS = 60
POINT = 0.72  # points per pixel at 100 dpi


def overlay(
    scene: Scene,
    detections: pd.DataFrame,
    path: str | Path,
    truth: pd.DataFrame | None = None,
    max_side: int = 1600,
    rgb: Sequence[int] = (2, 1, 0),
    classes: Sequence[str] | None = None,
    limits: npt.NDArray[np.float64] | None = None,
) -> Path:
    """Draws a scene with its detections as PNG; the picture's upper left pixel is that of the area of interest.

    Args:
        scene: what was searched; read decimated, only inside its area of interest.
        detections: the boxes of this scene alone, best first.
        path: file to write.
        truth: boxes as they should be (the same four pixel columns), drawn in dashed white.
        max_side: the longer side of the scene in the picture. A scene less than half as large is enlarged by a
            whole factor. The legend stands in a strip below it.
        rgb: which of the scene's bands become red, green and blue, counted from 0.
        classes: all classes in a fixed order, so that a class has the same colour in every scene's picture.
        limits: from ``stretch_limits``, to stretch several scenes alike.

    Raises:
        InputError: the scene cannot be read, lacks a band, or the picture cannot be written.
    """
    bands = shown_bands(len(scene.bands), rgb)
    view = preview(scene, max_side, bands)
    image = to_rgb(view.pixels, view.valid, tuple(range(len(bands))), limits)
    factor = max(1, min(8, max_side // max(image.shape[:2])))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = image.shape[:2]
    names = sorted(set(detections["class_name"]))
    colours = class_colours([*(classes or ()), *names])

    # A large picture is mostly seen shrunk: its lines and letters grow with it.
    unit = float(np.clip(max(width, height) / 1000, 1, 1.5))
    row, font = round(20 * unit), 11 * POINT * unit
    per_row = max(1, int(width // (200 * unit)))
    entries = len(names) + (truth is not None)
    strip = row * (1 + -(-entries // per_row)) + 14
    figure = new_figure(width, height + strip)
    axes = figure.add_axes((0, strip / (height + strip), 1, height / (height + strip)))
    axes.imshow(image, extent=(0, width, height, 0), interpolation="none", aspect="auto")
    axes.set_axis_off()

    boxes = _in_picture(detections, view, factor)
    # Thin where lines of the usual width would fill small boxes or hide a crowd.
    small = len(boxes) > 0 and float(np.median(boxes[:, 2:] - boxes[:, :2])) < 16
    thick = (1.2 if small else 2.0 if len(boxes) <= LABELS else 1.5) * unit
    handles = []
    seen = boxes
    if truth is not None:
        wanted = _in_picture(truth, view, factor)
        seen = np.vstack([boxes, wanted])
        _draw(axes, wanted, "white", thick * 0.7, dashed=True)
        handles.append(Line2D([], [], color="#555555", lw=1.2, ls=(0, (4, 2)), label=f"truth ({len(truth)})"))
    of_class = detections["class_name"].to_numpy()
    for name in names:
        _draw(axes, boxes[of_class == name], colours[name], thick)
        label = plain(f"{name} ({np.count_nonzero(of_class == name)})")
        handles.append(Line2D([], [], color=colours[name], lw=5, label=label))
    if 0 < len(boxes) <= LABELS:
        texts = [f"{n} {s:.2f}" for n, s in zip(of_class, detections["score"], strict=True)]
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        _label(axes, boxes, seen, texts, [colours[n] for n in of_class], (width, height), renderer, font)
    title = f"{scene.name}   {len(detections)} detection{'' if len(detections) == 1 else 's'}"
    y = strip / (height + strip)
    figure.text(8 / width, y * (1 - 8 / strip), plain(title), size=font * 1.1, va="top", color="#222222")
    if handles:
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0, y * (1 - (row + 4) / strip)), ncols=per_row,
            frameon=False, fontsize=font, handlelength=1.6, borderaxespad=0.2, columnspacing=1.6,
        )  # fmt: skip
    return save(figure, path)


def _in_picture(table: pd.DataFrame, view: Preview, factor: int) -> Boxes:
    """Scene pixels to picture pixels, ``[N, 4]``."""
    zoom = np.array([view.zoom_x, view.zoom_y, view.zoom_x, view.zoom_y]) * factor
    boxes: Boxes = (table[PIXELS].to_numpy(dtype=np.float64) - (view.left, view.top) * 2) * zoom
    return boxes


def _draw(axes: Axes, boxes: Boxes, colour: str, width: float, dashed: bool = False) -> None:
    corners = np.stack([boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]], axis=-1)
    # A dark edge keeps a bright line visible on snow and roofs.
    effects = [Stroke(linewidth=width * POINT + 1.1, foreground=(0, 0, 0, 0.55)), Normal()]
    axes.add_collection(
        PolyCollection(
            list(corners), facecolors="none", edgecolors=colour, linewidths=width * POINT, path_effects=effects,
            linestyles=[(0, (4, 2))] if dashed else "solid", capstyle="butt", joinstyle="miter",
        ),
        autolim=False,
    )  # fmt: skip


def _label(
    axes: Axes,
    boxes: Boxes,
    seen: Boxes,
    texts: list[str],
    colours: list[str],
    size: tuple[int, int],
    renderer: RendererAgg,
    points: float,
) -> None:
    """Writes labels, best first, each beside its box where it hides least of what is seen.

    A label that would lie on another, or hide half of some box wherever it went, is left out.
    """
    font = FontProperties(size=points * 0.9)
    h = 1.3 * points / POINT
    areas = np.maximum((seen[:, 2:] - seen[:, :2]).prod(axis=1), 1e-9)
    taken = np.empty((0, 4))
    for (x0, y0, x1, y1), text, colour in zip(boxes, texts, colours, strict=True):
        text = plain(textwrap.shorten(text, 36, placeholder="\u2026"))
        w = _width(renderer, text, font) + 6
        corners = [
            (x0, y0 - h - 1),
            (x1 - w, y0 - h - 1),
            (x0, y1 + 1),
            (x1 - w, y1 + 1),
            (x1 + 2, y0),
            (x0 - w - 2, y0),
        ]
        places = np.array([(x, y, x + w, y + h) for x, y in corners])
        inside = (places[:, :2] >= 0).all(axis=1) & (places[:, 2:] <= size).all(axis=1)
        hidden = _shared(places, seen) / areas
        free = inside & (_shared(places, taken).sum(axis=1) == 0) & (hidden.max(axis=1) < 0.5)
        if not free.any():
            continue
        best = places[np.argmin(np.where(free, hidden.sum(axis=1), np.inf))]
        taken = np.vstack([taken, best])
        axes.text(
            best[0] + 3, best[1] + h / 2, text, fontproperties=font, va="center_baseline", color=ink_on(colour),
            bbox={"boxstyle": "square,pad=0.12", "facecolor": colour, "edgecolor": "none", "alpha": 0.88},
        )  # fmt: skip


def _width(renderer: RendererAgg, text: str, font: FontProperties) -> float:
    size: tuple[float, float, float] = renderer.get_text_width_height_descent(text, font, False)
    return size[0]


def _shared(a: Boxes, b: Boxes) -> npt.NDArray[np.float64]:
    """The area that every box of ``a`` shares with every box of ``b``, ``[len(a), len(b)]``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared: npt.NDArray[np.float64] = np.clip(high - low, 0, None).prod(axis=-1)
    return shared
