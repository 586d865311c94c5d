from __future__ import annotations

import json
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio.transform
import rasterio.warp
from affine import Affine

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.report.table import write_vector
from tests.report.helpers import COLUMNS, make_scene, table

NORTH_UP = Affine(2.0, 0, 500_000, 0, -3.0, 5_200_000)
COS, SIN = np.cos(np.radians(30)), np.sin(np.radians(30))
TILTED = Affine(2 * COS, 3 * SIN, 500_000, 2 * SIN, -3 * COS, 5_200_000)
BOX = (10, 5, 20, 9)
READERS = {".gpkg": gpd.read_file, ".parquet": gpd.read_parquet, ".geojson": gpd.read_file}


def corners(transform: Affine) -> set[tuple[float, float]]:
    x0, y0, x1, y1 = BOX
    return {rasterio.transform.xy(transform, y, x, offset="ul") for x in (x0, x1) for y in (y0, y1)}


def same_points(one: set[tuple[float, float]], other: set[tuple[float, float]], within: float) -> None:
    assert len(one) == len(other) == 4
    for x, y in one:
        assert min(np.hypot(x - a, y - b) for a, b in other) < within


@pytest.mark.parametrize("transform", [NORTH_UP, TILTED])
@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson"])
def test_polygons_lie_where_the_boxes_are(tmp_path: Path, suffix: str, transform: Affine) -> None:
    scene = make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=transform)
    detections = table([*BOX, "Boat", "a", 0.9], [0, 0, 1, 1, "Boat", "a", 0.8]).assign(scale=2)
    path = write_vector(detections, {"a": scene}, tmp_path / f"d{suffix}")
    assert path == tmp_path / f"d{suffix}"
    frame = READERS[suffix](path)
    expected = corners(transform)
    if suffix == ".geojson":
        assert frame.crs.to_epsg() == 4326
        xs, ys = rasterio.warp.transform("EPSG:32632", "EPSG:4326", *zip(*expected, strict=True))
        expected = set(zip(xs, ys, strict=True))
        assert frame.geometry[0].exterior.is_ccw
    else:
        assert frame.crs.to_epsg() == 32632
    same_points(set(frame.geometry[0].exterior.coords), expected, within=1e-7)
    assert frame["score"].tolist() == [0.9, 0.8]
    assert frame["scale"].tolist() == [2, 2]
    assert frame["x_max"].tolist() == [20, 1]


def two_systems(tmp_path: Path) -> dict[str, Scene]:
    return {
        "a": make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=NORTH_UP),
        "b": make_scene(tmp_path / "b.tif", crs="EPSG:32633", transform=NORTH_UP),
    }


MIXED = table([*BOX, "Boat", "b", 0.9], [*BOX, "Pond", "a", 0.8], [*BOX, "Boat", "b", 0.7])


def test_several_systems_make_several_layers_of_a_geopackage(tmp_path: Path) -> None:
    path = write_vector(MIXED, two_systems(tmp_path), tmp_path / "d.gpkg")
    layers = {name for name, _ in pyogrio.list_layers(path)}
    assert layers == {"detections_EPSG_32632", "detections_EPSG_32633"}
    second = gpd.read_file(path, layer="detections_EPSG_32633")
    assert second.crs.to_epsg() == 32633
    assert second["score"].tolist() == [0.9, 0.7]


@pytest.mark.parametrize("suffix", [".parquet", ".geojson"])
def test_several_systems_meet_in_degrees_best_first(tmp_path: Path, suffix: str) -> None:
    frame = READERS[suffix](write_vector(MIXED, two_systems(tmp_path), tmp_path / f"d{suffix}"))
    assert frame.crs.to_epsg() == 4326
    assert frame["score"].tolist() == [0.9, 0.8, 0.7]
    # The central meridians of UTM 33 and 32.
    np.testing.assert_allclose(frame.geometry.bounds["minx"], [15, 9, 15], atol=1e-3)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson"])
def test_no_detections_still_make_a_file_with_columns(tmp_path: Path, suffix: str) -> None:
    scene = make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=NORTH_UP)
    path = write_vector(table(), {"a": scene}, tmp_path / f"d{suffix}")
    frame = READERS[suffix](path)
    assert len(frame) == 0
    if suffix == ".geojson":
        assert json.loads((tmp_path / "d.geojson").read_text())["features"] == []
        return
    assert frame.crs.to_epsg() == 32632
    assert list(frame.columns) == [*COLUMNS, "geometry"]
    assert frame["score"].dtype == float
    if suffix == ".gpkg":
        assert pyogrio.read_info(path)["geometry_type"] == "Polygon"


def test_scenes_without_a_place_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = make_scene(tmp_path / "plain.tif")
    detections = table([*BOX, "Boat", "plain", 0.9], [*BOX, "Boat", "a", 0.8])
    assert write_vector(detections, {"plain": plain}, tmp_path / "d.gpkg") is None
    assert not (tmp_path / "d.gpkg").exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    scene = make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=NORTH_UP)
    frame = gpd.read_file(write_vector(detections, {"plain": plain, "a": scene}, tmp_path / "d.gpkg"))
    assert frame["filename"].tolist() == ["a"]
    assert "lacks 1 detection" in caplog.text


def test_writing_twice_replaces(tmp_path: Path) -> None:
    scenes = {"a": make_scene(tmp_path / "a.tif", crs="EPSG:32632", transform=NORTH_UP)}
    for _ in range(2):
        path = write_vector(MIXED, scenes, tmp_path / "d.gpkg")
    assert len(gpd.read_file(path)) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"a.tif", "d.gpkg"}


def test_errors_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\.gpkg, \.parquet or \.geojson"):
        write_vector(MIXED, two_systems(tmp_path), tmp_path / "d.shp")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install siamese-sat\[parquet\]"):
        write_vector(MIXED, two_systems(tmp_path), tmp_path / "d.parquet")
