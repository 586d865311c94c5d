from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from siamese_sat.errors import InputError
from siamese_sat.report import plot
from tests.report.helpers import x_of, y_of


def write_log(path: Path, **extra: float) -> None:
    rows: list[dict[str, float]] = []
    for epoch in range(3):
        rows.append({"step": 10 * epoch, "lr-AdamW/head": 1e-3})
        rows.append({"step": 10 * epoch + 4, "epoch": epoch, "train/loss": 1.0 - 0.1 * epoch})
        rows.append({"step": 10 * epoch + 9, "epoch": epoch, "val/loss": 1.1, "val/recall_at_1": 0.2 * epoch, **extra})
    pd.DataFrame(rows).to_csv(path, index=False)


def test_curves_share_one_axis_of_epochs(tmp_path: Path, drawn: list[Figure]) -> None:
    write_log(tmp_path / "metrics.csv")
    plot.curves(tmp_path / "metrics.csv", tmp_path / "c.png", phase2=2)
    loss, metric, rate = drawn[0].axes
    lines = {line.get_label(): line for axes in (loss, metric, rate) for line in axes.get_lines()}
    np.testing.assert_allclose(x_of(lines["val/loss"]), [1, 2, 3])
    np.testing.assert_allclose(x_of(lines["train/loss"]), [0.5, 1.5, 2.5])
    np.testing.assert_allclose(y_of(lines["train/loss"]), [1.0, 0.9, 0.8])
    np.testing.assert_allclose(y_of(lines["val/recall_at_1"]), [0, 0.2, 0.4])
    assert lines["lr-AdamW/head"].axes is rate
    assert [list(x_of(line)) for line in metric.get_lines()][-1] == [2, 2]
    assert Image.open(tmp_path / "c.png").size == (1000, 60 + 3 * 250)


def test_curves_do_without_what_was_not_logged(tmp_path: Path, drawn: list[Figure]) -> None:
    (tmp_path / "a.csv").write_text("epoch,val/map_at_r\n0,0.5\n1,0.6\n")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.csv").write_text("step,epoch,val/loss,triplets\n,,,\n3,0,,17\n")
    for name in "abc":
        plot.curves(tmp_path / f"{name}.csv", tmp_path / f"{name}.png")
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["metric"]
    np.testing.assert_allclose(x_of(drawn[0].axes[0].get_lines()[0]), [1, 2])
    assert drawn[1].axes == []
    assert [axes.get_ylabel() for axes in drawn[2].axes] == ["loss", "other"]
    with pytest.raises(InputError, match=r"gone\.csv"):
        plot.curves(tmp_path / "gone.csv", tmp_path / "c.png")


def test_the_threshold_stands_where_the_probability_is_reached(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    same, different = rng.uniform(0.5, 1, 1000), rng.uniform(-0.2, 0.4, 3000)
    plot.similarity_histogram(same, different, 10, -4, tmp_path / "h.png", threshold=0.9)
    _, right = drawn[0].axes
    curve, line = right.get_lines()
    x = x_of(line)[0]
    assert 1 / (1 + np.exp(-(10 * x - 4))) == pytest.approx(0.9)
    assert np.interp(x, x_of(curve), y_of(curve)) == pytest.approx(0.9, abs=1e-3)
    bars = drawn[0].axes[0].patches
    # Filled bars of both kinds: each kind's shares add to one.
    assert sum(bar.get_height() for bar in bars if hasattr(bar, "get_height")) == pytest.approx(2)


def test_a_histogram_of_nothing_is_drawn(tmp_path: Path) -> None:
    plot.similarity_histogram(np.array([]), np.array([]), 0, 0, tmp_path / "h.png")
    assert (tmp_path / "h.png").exists()


def test_a_calibration_that_could_not_be_fitted_is_a_line(tmp_path: Path, drawn: list[Figure]) -> None:
    plot.similarity_histogram(np.ones(3), -np.ones(3), 0.5, 0.5, tmp_path / "h.png", threshold=0.3, kind="linear")
    curve, line = drawn[0].axes[1].get_lines()
    np.testing.assert_allclose(y_of(curve), (x_of(curve) + 1) / 2)
    assert x_of(line)[0] == pytest.approx(-0.4)
    assert "nothing could be calibrated" in str(curve.get_label())
