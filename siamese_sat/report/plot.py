"""Diagrams of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from siamese_sat.errors import InputError
from siamese_sat.report.colour import strokes
from siamese_sat.report.render import dress, new_figure, plain, save

Floats = npt.NDArray[np.float64]

SAME, DIFFERENT = "#0072B2", "#E69F00"


def curves(metrics_csv: str | Path, path: str | Path, phase2: float | None = None) -> Path:
    """Draws what Lightning's CSVLogger wrote: losses, metrics between 0 and 1, learning rates, anything else.

    A panel without a column is left out. Values are drawn over the epochs that were complete when they were
    logged, which puts those of every step and those of every epoch on one axis.

    Args:
        metrics_csv: ``metrics.csv``; most of its cells are empty, since a row holds what was logged at one time.
        path: PNG to write.
        phase2: how many epochs were complete when the second phase of training began; a vertical line there.

    Raises:
        InputError: the file is missing or is not a table, or the picture cannot be written.
    """
    try:
        log = pd.read_csv(metrics_csv)
    except pd.errors.EmptyDataError:
        log = pd.DataFrame()
    except (OSError, ValueError) as error:
        raise InputError(f"{metrics_csv} cannot be read as a table of metrics ({error}).") from error
    x = _epochs(log)
    panels: dict[str, list[str]] = {"loss": [], "metric": [], "learning rate": [], "other": []}
    for name in log.select_dtypes("number").columns.drop(["epoch", "step", "hp_metric"], errors="ignore"):
        values = log[name].dropna()
        if name.startswith("lr"):
            panels["learning rate"].append(name)
        elif "loss" in name:
            panels["loss"].append(name)
        elif len(values):
            panels["metric" if values.between(-0.01, 1.01).all() else "other"].append(name)
    filled = {title: sorted(names) for title, names in panels.items() if names}
    figure = new_figure(1000, 60 + 250 * max(1, len(filled)))
    if not filled:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", color="#777777")
        return save(figure, path)
    grid = figure.subplots(len(filled), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, names) in zip(grid, filled.items(), strict=True):
        dress(axes, title)
        for number, name in enumerate(names):
            _line(axes, x, log[name].to_numpy(dtype=np.float64), name, strokes(number))
        if title == "metric":
            axes.set_ylim(-0.02, 1.02)
        elif title == "learning rate":
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        if phase2 is not None:
            axes.axvline(phase2, color="#888888", lw=1, ls=(0, (4, 3)))
            if axes is grid[0]:
                axes.annotate(
                    "phase 2", (phase2, 1), (4, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
                    va="top", size=8.5, color="#666666",
                )  # fmt: skip
        # Beside the panel: inside it a legend hides some curve, and which one changes from run to run.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, borderaxespad=0)
    grid[-1].set_xlabel("epochs completed")
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.tight_layout()
    figure.align_ylabels(grid)
    return save(figure, path)


def similarity_histogram(
    same: npt.NDArray[np.floating],
    different: npt.NDArray[np.floating],
    slope: float,
    intercept: float,
    path: str | Path,
    threshold: float = 0.5,
    kind: Literal["logistic", "linear"] = "logistic",
) -> Path:
    """Draws how alike pairs of one class and of two are, and what the calibration makes of it.

    Args:
        same: cosine similarity of pairs of one class, [-1, 1].
        different: cosine similarity of pairs of different classes, [-1, 1].
        slope: of the calibration, see `siamese_sat.model.calibration.Calibration`.
        intercept: of the same.
        path: PNG to write.
        threshold: the probability, in (0, 1), from which a detection is reported.
        kind: of the calibration: the sigmoid of slope * cosine + intercept, or that itself within 0 and 1.
    """
    both = np.concatenate([np.ravel(same), np.ravel(different)])
    low = np.floor(10 * max(-1.0, both.min())) / 10 if both.size else -1.0
    bins = np.linspace(min(low, 0.0), 1.0, 61)
    figure = new_figure(900, 480)
    axes = figure.subplots()
    dress(axes, "share of pairs")
    for values, colour, name in ((different, DIFFERENT, "different classes"), (same, SAME, "same class")):
        weights = np.full(np.size(values), 1 / max(1, np.size(values)))
        label = f"{name} ({np.size(values):,} pairs)"
        axes.hist(np.ravel(values), bins=bins.tolist(), weights=weights, color=colour, alpha=0.55, label=label)
        axes.hist(np.ravel(values), bins=bins.tolist(), weights=weights, color=colour, histtype="step", lw=1.2)
    axes.set_xlabel("cosine similarity")
    axes.set_xlim(bins[0], 1)

    right = axes.twinx()
    s = np.linspace(bins[0], 1, 400)
    value = slope * s + intercept
    probability = np.clip(value, 0, 1) if kind == "linear" else 0.5 * (1 + np.tanh(0.5 * value))  # without overflow
    name = "score (nothing could be calibrated)" if kind == "linear" else "calibrated probability"
    right.plot(s, probability, color="#222222", lw=1.8, label=name)
    right.set_ylim(0, 1.02)
    right.set_ylabel("probability", color="#444444")
    right.tick_params(colors="#555555", length=0)
    right.spines[["top", "left", "right", "bottom"]].set_visible(False)
    if slope != 0 and 0 < threshold < 1:
        goal = threshold if kind == "linear" else np.log(threshold / (1 - threshold))
        cosine = (goal - intercept) / slope
        if bins[0] <= cosine <= 1:
            label = f"threshold {threshold:.2f} (cosine {cosine:.2f})"
            right.axvline(cosine, color="#222222", lw=1, ls=(0, (4, 3)), label=label)
    handles = [h for a in (axes, right) for h in a.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="upper center", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.89))
    return save(figure, path)


def _epochs(log: pd.DataFrame) -> Floats:
    """The epochs that were complete at every row: between two ends of epochs, the steps tell how far it was."""
    if not {"epoch", "step"} <= set(log.columns):
        column = next((log[c] for c in ("epoch", "step") if c in log), pd.Series(log.index))
        return column.to_numpy(dtype=np.float64) + 1
    known = log.dropna(subset=["epoch", "step"])
    ends = known.groupby("epoch")["step"].max().cummax()
    if ends.empty:
        return np.arange(1, len(log) + 1, dtype=np.float64)
    steps = np.concatenate([[0.0], ends.to_numpy(dtype=np.float64) + 1])
    done = np.concatenate([[0.0], ends.index.to_numpy(dtype=np.float64) + 1])
    x: Floats = np.interp(log["step"].to_numpy(dtype=np.float64) + 1, steps, done)
    return x


def _line(axes: Axes, x: Floats, y: Floats, name: str, style: dict[str, Any]) -> None:
    there = np.isfinite(y) & np.isfinite(x)
    x, y = x[there], y[there]
    if len(y) > 120:
        # Batches are noisy: what is seen is their running mean, with the batches behind it.
        axes.plot(x, y, **{**style, "lw": 0.6}, alpha=0.3)
        y = pd.Series(y).ewm(span=len(y) / 20).mean().to_numpy()
    axes.plot(x, y, **style, label=plain(name), marker="o" if len(y) <= 40 else "", ms=3)
