from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio

from siamese_sat.search.index.entry import Signature, degrees, from_json, scene_date, signature, to_json
from tests.conftest import NORTH_UP, UTM33, make_scene, ramp, write_scene


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("S2A_MSIL2A_20240229T101021_N0510.tif", date(2024, 2, 29)),
        ("scene_2021-03-04.tif", date(2021, 3, 4)),
        ("2019_12_31_b.tif", date(2019, 12, 31)),
        ("m_4109120_20210816.tif", date(2021, 8, 16)),
        ("tile_20211301.tif", None),
        ("tile_20210230.tif", None),  # there is no such day
        ("id_120210816.tif", None),  # a longer number
        ("a.tif", None),
    ],
)
def test_days_in_names(tmp_path: Path, name: str, day: date | None) -> None:
    assert scene_date(write_scene(tmp_path / name, ramp(1, 4, 4))) == day


def test_what_tags_say_of_the_acquisition_comes_first_and_of_the_file_last(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a_20200101.tif", ramp(1, 4, 4))
    with rasterio.open(path, "r+") as scene:
        scene.update_tags(TIFFTAG_DATETIME="2025:06:07 08:09:10")
    assert scene_date(path) == date(2020, 1, 1)
    with rasterio.open(path, "r+") as scene:
        scene.update_tags(ACQUISITIONDATETIME="2019-05-06T07:08:09Z")
    assert scene_date(path) == date(2019, 5, 6)
    bare = write_scene(tmp_path / "b.tif", ramp(1, 4, 4))
    with rasterio.open(bare, "r+") as scene:
        scene.update_tags(TIFFTAG_DATETIME="2025:06:07 08:09:10")
    assert scene_date(bare) == date(2025, 6, 7)


def test_a_scene_survives_as_text(tmp_path: Path) -> None:
    for options in ({}, {"crs": UTM33, "transform": NORTH_UP, "nodata": 0}):
        scene = make_scene(tmp_path / "a.tif", ramp(3, 8, 9), **options)
        assert from_json(to_json(scene.within([1, 2, 5, 6]))) == scene.within([1, 2, 5, 6])


def test_a_change_of_any_kind_shows(tmp_path: Path) -> None:
    path = Path(write_scene(tmp_path / "a.tif", ramp(1, 8, 8)))
    before = signature(str(path))
    assert before == signature(str(path))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert signature(str(path)) != before
    assert signature(str(tmp_path / "gone.tif")) == signature("s3://bucket/a.tif") == Signature(0, 0, "")


def test_boxes_in_degrees(tmp_path: Path) -> None:
    placed = make_scene(tmp_path / "a.tif", ramp(1, 8, 8), crs=UTM33, transform=NORTH_UP)
    found = degrees(placed, np.array([[0.0, 0, 4, 4], [4, 4, 8, 8]]))
    assert found[0, 0] == pytest.approx(15, abs=1e-9)
    assert found[0, 2] == pytest.approx(found[1, 0], abs=1e-7)
    assert (found[0, 3] - found[0, 1]) * 111_000 == pytest.approx(8, rel=0.01)
    loose = make_scene(tmp_path / "b.tif", ramp(1, 8, 8))
    assert np.isnan(degrees(loose, np.array([[0.0, 0, 4, 4]]))).all()
