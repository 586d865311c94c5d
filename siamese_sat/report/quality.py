"""Diagrams of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.ticker import FixedLocator

from siamese_sat.report.colour import fills, strokes
from siamese_sat.report.render import dress, new_figure, plain, save

# Of fewer detections the share that is right says little: with 10 it is known to within a sixth either way.
FEW = 10


def precision_recall(
    curves: Mapping[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]],
    path: str | Path,
    titles: Mapping[str, str] | None = None,
) -> Path:
    """Draws precision over recall, a curve per class, over faint lines of equal F1.

    Args:
        curves: class name to (recall, precision), each ``[N]`` in [0, 1], recall ascending.
        path: PNG to write.
        titles: class name to what the legend says of it, such as ``Boat, AP 0.71``; None says the name.
    """
    figure = new_figure(860 if curves else 640, 600)
    axes = figure.subplots()
    dress(axes, "precision")
    for f1 in (0.2, 0.4, 0.6, 0.8):
        x = np.linspace(f1 / (2 - f1), 1, 200)
        axes.plot(x, f1 * x / (2 * x - f1), color="#cccccc", lw=0.8, zorder=1)
        axes.text(1.0, f1 / (2 - f1) + 0.012, f"F1 {f1}", size=7.5, color="#999999", ha="right")
    for number, (name, (r, p)) in enumerate(curves.items()):
        label = plain((titles or {}).get(name, name))
        axes.plot(r, p, **strokes(number), label=label, drawstyle="steps-pre")
    axes.set_xlim(0, 1.005)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    if curves:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, borderaxespad=0)
    figure.tight_layout()
    return save(figure, path)


def reliability_diagram(
    tables: Mapping[str, pd.DataFrame], path: str | Path, titles: Mapping[str, str] | None = None
) -> Path:
    """Draws how many of the detections of each score are right, a line per class, and below how many there are.

    Scores that mean what they say lie on the diagonal; below it they promise too much. A bin of fewer than 10
    detections has a hollow mark, an empty one none.

    Args:
        tables: class name to what `siamese_sat.evaluation.reliability.reliability` gave.
        path: PNG to write.
        titles: class name to what the legend says of it, such as ``Boat, ECE 0.07``; None says the name.
    """
    figure = new_figure(860 if tables else 640, 700)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    dress(above, "share that is right")
    dress(below, "detections")
    above.plot([0, 1], [0, 1], color="#888888", lw=1, ls=(0, (4, 3)), zorder=1, label="as the score says")
    for number, (name, table) in enumerate(tables.items()):
        there = table[table["count"] > 0]
        x, y, count = (there[c].to_numpy(dtype=np.float64) for c in ("mean_score", "precision", "count"))
        look = strokes(number)
        above.plot(x, y, **look, label=plain((titles or {}).get(name, name)))
        fill = np.where(count < FEW, "white", look["color"])
        above.scatter(x, y, s=34, c=fill, edgecolors=look["color"], linewidths=1.4, zorder=3)
        width = 0.9 / len(table) / len(tables)
        left = table["bin"] + (number - len(tables) / 2) * width
        below.bar(left, table["count"], width, align="edge", **fills(number))
    above.set_xlim(0, 1.005)
    above.set_ylim(-0.02, 1.03)
    # Hundreds of faint places and a handful of sure ones are to be seen at once.
    below.set_yscale("symlog", linthresh=1)
    most = max((int(table["count"].max()) for table in tables.values()), default=1)
    below.set_ylim(0, 2 * max(most, 1))
    below.yaxis.set_major_locator(FixedLocator([0, *10.0 ** np.arange(9)]))
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.set_xlabel("score")
    if tables:
        label = f"fewer than {FEW} detections"
        above.scatter([], [], s=34, c="white", edgecolors="#555555", linewidths=1.4, label=label)
        above.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, borderaxespad=0)
    figure.tight_layout()
    figure.align_ylabels([above, below])
    return save(figure, path)
