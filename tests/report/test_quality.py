from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from siamese_sat.evaluation.reliability import reliability
from siamese_sat.report import quality
from siamese_sat.report.colour import LINES
from tests.report.helpers import x_of, y_of


def test_precision_recall_draws_every_class(tmp_path: Path, drawn: list[Figure]) -> None:
    r = np.array([0.2, 0.5, 0.8])
    quality.precision_recall({"Boat": (r, 1 - r), "_Pond $": (r, r)}, tmp_path / "p.png", {"Boat": "Boat, AP 0.7"})
    axes = drawn[0].axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(y_of(lines["Boat, AP 0.7"]), 1 - r)
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["Boat, AP 0.7", r" _Pond \$"]
    quality.precision_recall({}, tmp_path / "p.png")


def test_thirty_classes_have_curves_that_differ(tmp_path: Path, drawn: list[Figure]) -> None:
    r = np.array([0.2, 0.5])
    quality.precision_recall({f"class {i}": (r, r) for i in range(28)}, tmp_path / "p.png")
    lines = [line for line in drawn[0].axes[0].get_lines() if str(line.get_label()).startswith("class")]
    assert len({(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in lines}) == 28  # type: ignore[attr-defined]


def test_reliability_draws_share_over_score_and_the_count_below(tmp_path: Path, drawn: list[Figure]) -> None:
    boat = reliability([0.12] * 20 + [0.72, 0.78], [True] * 5 + [False] * 15 + [True, False])
    pond = reliability([0.95], [True])
    quality.reliability_diagram({"Boat": boat, "_Pond $": pond}, tmp_path / "r.png", {"Boat": "Boat, ECE 0.14"})
    above, below = drawn[0].axes
    lines = {line.get_label(): line for line in above.get_lines()}
    np.testing.assert_allclose(x_of(lines["Boat, ECE 0.14"]), [0.12, 0.75])
    np.testing.assert_allclose(y_of(lines["Boat, ECE 0.14"]), [0.25, 0.5])
    np.testing.assert_allclose(x_of(lines["as the score says"]), y_of(lines["as the score says"]))
    # Hollow where there are few.
    marks = above.collections[0].get_facecolor()  # type: ignore[no-untyped-call]
    assert [to_hex(colour).upper() for colour in marks] == [LINES[0], "#FFFFFF"]
    heights = [bar.get_height() for bar in below.patches]  # type: ignore[attr-defined]
    assert heights == [*boat["count"], *pond["count"]]
    places = [bar.get_x() + bar.get_width() / 2 for bar in below.patches]  # type: ignore[attr-defined]
    assert (np.abs(np.array(places) - np.tile(boat["bin"], 2)) < 0.05).all()
    assert below.get_ylim()[1] > 20
    quality.reliability_diagram({}, tmp_path / "none.png")
    assert (tmp_path / "none.png").is_file()
