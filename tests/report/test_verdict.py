from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from siamese_sat.data.scene import Scene
from siamese_sat.evaluation.verdict import judge
from siamese_sat.report import verdict as drawing
from siamese_sat.report.colour import PALETTE
from siamese_sat.report.evaluated import verdict_sheets
from siamese_sat.report.render import NO_DATA_GREY, Preview
from siamese_sat.report.verdict import CELL, GAP, GUTTER, HEAD, UNDER, _title, verdict_sheet
from tests.report.helpers import Picture, load, make_scene, near, table


def cell(picture: Picture, row: int, column: int) -> Picture:
    y, x = HEAD + row * (CELL + UNDER), GUTTER + column * (CELL + GAP)
    return picture[y : y + CELL, x : x + CELL]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Dark noise, four bands, 200 rows of 300; a bright square at (100, 100) in the third band alone."""
    pixels = np.random.default_rng(0).integers(0, 40, (4, 200, 300)).astype(np.uint16)
    pixels[:, 100:120, 100:120] = np.array([0, 0, 1000, 0])[:, None, None]
    return make_scene(tmp_path / "a.tif", pixels)


RANKED = table(
    [100, 100, 120, 120, "Boat", "a.tif", 0.9],
    [0, 40, 20, 60, "Boat", "a.tif", 0.8],
    [200, 100, 240, 140, "Boat", "a.tif", 0.1],
)
TRUTH = table([101, 100, 121, 120, "Boat", "a.tif", 1], [200, 104, 240, 144, "Boat", "a.tif", 1])


def test_three_rows_of_chips(tmp_path: Path, scene: Scene) -> None:
    verdict = judge(RANKED, TRUTH, {"Boat": 0.3})["Boat"]
    verdict_sheet("Boat", verdict, 0.3, {"a.tif": scene}, tmp_path / "v.png", PALETTE[1])
    picture = load(tmp_path / "v.png")
    found, missed, false = (cell(picture, row, 0) for row in range(3))
    # The thing stands in the middle of its chip, twice as wide as it, red as its band, the box drawn round it.
    assert near(found, "red", 60)[CELL // 2, CELL // 2]
    assert not near(found, "red", 60)[CELL // 8, CELL // 2]
    edge = np.flatnonzero(near(found, PALETTE[1])[CELL // 2])
    assert abs(edge.min() - CELL / 4) < 4
    assert abs(edge.max() - CELL * 3 / 4) < 4
    # A miss shows truth in dashed white in its middle, and the detection that scored too little above it.
    assert near(missed, PALETTE[1]).any()
    dashes = near(missed, "white", 60)[CELL // 4 + 8 : CELL * 3 // 4 - 8, CELL // 4 - 3 : CELL // 4 + 4].any(axis=1)
    assert 0.1 < dashes.mean() < 0.95
    # What reaches beyond the scene is grey.
    assert (false[CELL // 2, 2] == NO_DATA_GREY).all()
    assert near(false, PALETTE[1]).any()


def test_chips_of_detections_are_called_by_their_rows() -> None:
    """The numbers that feedback takes; what was missed has none, whatever lies on it."""
    verdict = judge(RANKED.assign(row=[4, 7, np.nan]), TRUTH, {"Boat": 0.3})["Boat"]
    said = {kind: _title(getattr(verdict, kind).iloc[0], kind) for kind in ("found", "missed", "false")}
    assert said == {"found": "row 4:  0.90   IoU 0.90", "missed": "0.10   IoU 0.82", "false": "row 7:  0.80"}
    assert _title(judge(RANKED, TRUTH, {"Boat": 0.3})["Boat"].false.iloc[0], "false") == "0.80"


def test_another_order_of_bands(tmp_path: Path, scene: Scene) -> None:
    verdict = judge(RANKED, TRUTH, {"Boat": 0.3})["Boat"]
    verdict_sheet("Boat", verdict, 0.3, {"a.tif": scene}, tmp_path / "v.png", PALETTE[1], (0, 1, 2))
    assert near(cell(load(tmp_path / "v.png"), 0, 0), "blue", 60)[CELL // 2, CELL // 2]


def test_only_windows_are_read_and_large_things_decimated(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[Scene, Preview]] = []

    def watched(part: Scene, side: int, bands: tuple[int, ...]) -> Preview:
        read.append((part, view := real(part, side, bands)))
        return view

    real = drawing.preview
    monkeypatch.setattr(drawing, "preview", watched)
    monkeypatch.setattr(drawing, "CELL", 20)
    ranked = table([100, 60, 200, 160, "Boat", "a.tif", 0.9], [5, 5, 9, 9, "Boat", "a.tif", 0.8])
    verdict = judge(ranked, TRUTH.head(0), {"Boat": 0.3})["Boat"]
    verdict_sheet("Boat", verdict, 0.3, {"a.tif": scene}, tmp_path / "v.png", PALETTE[0])
    assert [part.aoi for part, _ in read] == [(50, 10, 250, 200), (0, 0, 23, 23)]
    assert [view.pixels.shape for _, view in read] == [(3, 38, 40), (3, 23, 23)]


def test_rows_of_nothing_and_names_of_all_kinds(tmp_path: Path, scene: Scene) -> None:
    names = ["Boat", "sea $/plane", "sea $ plane"]
    ranked = pd.concat([RANKED.assign(class_name=name) for name in names])
    thresholds = dict.fromkeys(names, 0.95)
    verdicts = judge(ranked, TRUTH.head(0).assign(class_name=names[0]), dict.fromkeys(names, 0.85))
    colours = dict(zip(names, PALETTE, strict=False))
    section = verdict_sheets(verdicts, thresholds, {"a.tif": scene}, tmp_path, colours, (2, 1, 0))
    assert [path.name for path in section.images] == [
        "verdict_Boat.png", "verdict_sea___plane.png", "verdict_sea___plane_2.png",
    ]  # fmt: skip
    heights = {Image.open(path).height for path in section.images}
    assert heights < {HEAD + n for n in range(CELL + UNDER, 2 * (CELL + UNDER))}, "an empty row takes little room"
