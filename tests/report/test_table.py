from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from affine import Affine
from rich.console import Console

from siamese_sat.errors import InputError
from siamese_sat.report.files import replacing
from siamese_sat.report.table import class_table, with_map_coordinates, write_csv
from tests.report.helpers import COLUMNS, make_scene, table

NORTH_UP = Affine(2.0, 0, 500_000, 0, -3.0, 5_200_000)


def test_map_coordinates_of_a_north_up_scene_with_oblong_pixels(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=NORTH_UP)
    located = with_map_coordinates(table([10, 5, 20, 9, "Boat", "a", 0.9]), {"a": scene})
    bounds = located.iloc[0][["map_x_min", "map_y_min", "map_x_max", "map_y_max"]]
    assert list(bounds) == [500_020, 5_199_973, 500_040, 5_199_985]
    assert located["crs"].tolist() == ["EPSG:32632"]


def test_bounds_of_a_rotated_box_hold_all_four_corners(tmp_path: Path) -> None:
    half = np.sqrt(0.5)
    transform = Affine(half, half, 1000, half, -half, 2000)
    scene = make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=transform)
    row = with_map_coordinates(table([0, 0, 10, 10, "Boat", "a", 0.9]), {"a": scene}).iloc[0]
    diagonal = 10 * np.sqrt(2)
    found = row[["map_x_min", "map_y_min", "map_x_max", "map_y_max"]].astype(float).to_numpy()
    np.testing.assert_allclose(found, [1000, 2000 - diagonal / 2, 1000 + diagonal, 2000 + diagonal / 2], rtol=1e-12)


def test_rows_keep_their_order_and_scenes_without_a_place_stay_empty(tmp_path: Path) -> None:
    scenes = {
        "a": make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=NORTH_UP),
        "plain": make_scene(tmp_path / "plain.tif"),
    }
    detections = table(
        [0, 0, 1, 1, "Boat", "plain", 0.9], [1, 0, 2, 1, "Boat", "a", 0.8], [0, 0, 1, 1, "Boat", "unknown", 0.7]
    )
    detections.index = pd.Index([7, 7, 3])
    located = with_map_coordinates(detections, scenes)
    assert located["map_x_min"].isna().tolist() == [True, False, True]
    assert located["crs"].tolist() == [None, "EPSG:32632", None]
    assert located["map_x_min"].iloc[1] == 500_002
    assert "crs" not in detections


def test_a_system_without_authority_is_named_by_its_wkt(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", crs="+proj=laea +lat_0=10 +lon_0=5 +datum=WGS84", transform=NORTH_UP)
    located = with_map_coordinates(table([0, 0, 1, 1, "Boat", "a", 0.5]), {"a": scene})
    assert "Lambert_Azimuthal_Equal_Area" in str(located["crs"].iloc[0])


def test_csv_has_header_extras_and_short_numbers(tmp_path: Path) -> None:
    detections = table([1.0, 2.345, -0.001, 4.5, "Boat, big", "a.tif", 0.87654321])
    detections["scale"] = 2
    write_csv(detections, tmp_path / "new" / "d.csv")
    assert (tmp_path / "new" / "d.csv").read_text().splitlines() == [
        "x_min,y_min,x_max,y_max,class_name,filename,score,scale",
        '1,2.35,0,4.50,"Boat, big",a.tif,0.876543,2',
    ]


def test_challenge_csv_has_no_header_and_seven_columns(tmp_path: Path) -> None:
    detections = table([1, 2, 3, 4, "B", "a.tif", 0.2], [5, 6, 7, 8, "A", "a.tif", 0.1]).assign(scale=1)
    write_csv(detections[["score", "scale", *COLUMNS[:6]]], tmp_path / "d.csv", style="challenge")
    assert (tmp_path / "d.csv").read_text() == "1,2,3,4,B,a.tif,0.200000\n5,6,7,8,A,a.tif,0.100000\n"
    with pytest.raises(InputError, match="challenge"):
        write_csv(detections, tmp_path / "d.csv", style="kaggle")  # type: ignore[arg-type]


def test_csv_keeps_enough_of_degrees_and_no_more_of_metres(tmp_path: Path) -> None:
    degrees = Affine(1 / 300_000, 0, 8.5, 0, -1 / 300_000, 47.25)
    scenes = {
        "deg": make_scene(tmp_path / "deg.tif", crs="EPSG:4326", transform=degrees),
        "m": make_scene(tmp_path / "m.tif", crs="EPSG:32632", transform=NORTH_UP),
    }
    detections = table([1, 0, 2, 1, "B", "deg", 0.9], [1, 0, 2, 1, "B", "m", 0.8], [1, 0, 2, 1, "B", "none", 0.7])
    write_csv(with_map_coordinates(detections, scenes), tmp_path / "d.csv")
    rows = pd.read_csv(tmp_path / "d.csv", dtype=str, keep_default_na=False)
    assert rows["map_x_min"].tolist() == ["8.500003333", "500002.000", ""]
    assert rows["crs"].tolist() == ["EPSG:4326", "EPSG:32632", ""]


def test_an_empty_table_has_its_header(tmp_path: Path) -> None:
    write_csv(with_map_coordinates(table(), {}), tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text().strip().split(",") == [
        *COLUMNS, "map_x_min", "map_y_min", "map_x_max", "map_y_max", "crs",
    ]  # fmt: skip


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "d.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(InputError, match="cannot be written"):
        write_csv(table(), target / "below_a_file.csv")


def test_files_have_the_users_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_csv(table(), tmp_path / "d.csv")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "d.csv").stat().st_mode) == 0o644


def test_class_table_counts_per_class_and_reads_no_markup() -> None:
    detections = table([0, 0, 1, 1, "[red]Boat", "a", 0.91], [0, 0, 1, 1, "[red]Boat", "a", 0.4])
    out = Console(file=io.StringIO(), width=120)
    out.print(class_table(detections, ["[red]Boat", "Pond"], 3, {"[red]Boat": 5000, "Pond": 100}, 2.0))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    boat, pond = (next(line for line in text.splitlines() if name in line) for name in ("[red]Boat", "Pond"))
    assert [cell.strip() for cell in boat.split("│")[1:-1]] == ["[red]Boat", "3", "5,000", "2,500", "2", "0.91"]
    assert [cell.strip() for cell in pond.split("│")[1:-1]] == ["Pond", "3", "100", "50", "0", "-"]
