"""What a search for settings found: a table, how it went, and which settings mattered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from siamese_sat.report.colour import LINES
from siamese_sat.report.files import replacing
from siamese_sat.report.render import dress, new_figure, plain, save

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

GREY = "#999999"


@dataclass(frozen=True)
class Finding:
    """The best of a search.

    Attributes:
        number: of the trial.
        value: of its metric.
        checkpoint: that it left.
        command: that trains with its settings.
    """

    number: int
    value: float
    checkpoint: Path
    command: str


def write_trials(trials: Sequence[FrozenTrial], path: Path) -> Path:
    """Writes a row for each trial: number, state, value, epochs, seconds, its settings, folder, and why it failed."""
    rows = []
    for trial in trials:
        seconds = trial.duration.total_seconds() if trial.duration is not None else np.nan
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "epochs": len(trial.intermediate_values),
                "seconds": round(seconds, 1),
                **trial.params,
                "folder": trial.user_attrs.get("folder"),
                "error": trial.user_attrs.get("error"),
            }
        )
    table = pd.DataFrame(rows)
    last = [name for name in ("folder", "error") if name in table]
    with replacing(path) as temporary:
        table[[*(c for c in table if c not in last), *last]].to_csv(temporary, index=False)
    return path


def trials_table(trials: Sequence[FrozenTrial], metric: str, best: Finding) -> None:
    """Prints the trials, those that have a value best first, and below them the best one's checkpoint and command."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    table = Table("trial", "state", metric, *names, box=None, header_style="bold")
    known = [t for t in trials if t.value is not None and t.state.name == "COMPLETE"]
    # The best one says which end is the better.
    known.sort(key=lambda t: abs(float(t.value or 0) - best.value))
    for trial in [*known, *(t for t in trials if t not in known)]:
        value = "" if trial not in known else f"{trial.value:.5g}"
        settings = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in (trial.params.get(n, "") for n in names))
        style = "bold green" if trial.number == best.number else None
        table.add_row(str(trial.number), trial.state.name.lower(), value, *settings, style=style)
    out = Console()
    (out if out.is_terminal else Console(width=240)).print(table)  # a file has no width to keep to
    print(f"Best: trial {best.number}, {metric} {best.value:.5g}, {best.checkpoint}\n{best.command}")


def draw_study(study: optuna.Study, metric: str, folder: Path) -> None:
    """Draws ``history.png`` and, where at least two complete trials differ, ``importances.png``."""
    _history(study, metric, folder / "history.png")
    importances = _importances(study)
    if importances:
        _bars(importances, metric, folder / "importances.png")


def _history(study: optuna.Study, metric: str, path: Path) -> Path:
    trials = study.get_trials(deepcopy=False)
    figure = new_figure(900, 460)
    axes = figure.subplots()
    dress(axes, plain(metric))
    done = [(t.number, float(t.value)) for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    ended = [
        (t.number, t.intermediate_values[max(t.intermediate_values)])
        for t in trials
        if t.state.name == "PRUNED" and t.intermediate_values
    ]
    numbers, values = np.array(done).T
    best = (np.minimum if study.direction.name == "MINIMIZE" else np.maximum).accumulate(values)
    axes.step(numbers, best, where="post", color=LINES[1], lw=1.8, label="best so far")
    axes.scatter(numbers, values, color=LINES[0], s=28, zorder=3, label=f"complete ({len(done)})")
    if ended:
        x, y = np.array(ended).T
        label = f"pruned, at its last epoch ({len(ended)})"
        axes.scatter(x, y, color=GREY, s=28, marker="x", zorder=2, label=label)
    failed = [t.number for t in trials if t.state.name == "FAIL"]
    if failed:
        label = f"failed ({len(failed)})"
        low = np.full(len(failed), 0.02)
        axes.scatter(failed, low, color=LINES[3], s=28, marker="|", label=label, transform=axes.get_xaxis_transform())
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, borderaxespad=0)
    figure.tight_layout()
    return save(figure, path)


def _importances(study: optuna.Study) -> dict[str, float]:
    from optuna.importance import get_param_importances

    done = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    if len({json.dumps(t.params, sort_keys=True) for t in done}) < 2 or len({t.value for t in done}) < 2:
        return {}
    try:
        return get_param_importances(study)
    except (ValueError, RuntimeError):  # too few trials for this evaluator
        return {}


def _bars(importances: dict[str, float], metric: str, path: Path) -> Path:
    names = list(importances)[::-1]
    figure = new_figure(900, 110 + 34 * len(names))
    axes = figure.subplots()
    dress(axes, "")
    bars = axes.barh(names, [importances[n] for n in names], color=LINES[0], height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=4, color="#444444", fontsize=9)
    axes.set_xlabel(f"importance for {plain(metric)} (part of 1)")
    axes.set_xlim(0, max(0.1, max(importances.values()) * 1.12))
    axes.grid(visible=False, axis="y")
    figure.tight_layout()
    return save(figure, path)
