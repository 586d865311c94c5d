from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from affine import Affine
from shapely import Polygon, affinity, box

from siamese_sat.data.annotation import LabelReader, coco_scenes
from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from tests.conftest import NORTH_UP, UTM33, make_scene, ramp

# Columns run north and rows east: x = 500000 + 3 row, y = 5000000 + 2 column.
SIDEWAYS = Affine(0, 3, 500_000, 2, 0, 5_000_000)
TILTED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(2, -3)
BOX = ["x_min", "y_min", "x_max", "y_max"]


def scene_at(path: Path, transform: Affine | None = NORTH_UP, size: tuple[int, int] = (40, 60)) -> Scene:
    """40 rows of 60 columns."""
    placed: dict[str, Any] = {} if transform is None else {"crs": UTM33, "transform": transform}
    return make_scene(path, ramp(1, *size), **placed)


def challenge(path: Path, *boxes: tuple[str, float, float, float, float], **members: object) -> Path:
    features = []
    for name, x0, y0, x1, y1 in boxes:
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        geometry = {"type": "MultiPolygon", "coordinates": [[ring]]}
        features.append({"type": "Feature", "properties": {"Class Name": name}, "geometry": geometry})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def coco(path: Path, images: list[str], *notes: tuple[int, list[float]], **more: object) -> Path:
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images)],
        "categories": [{"id": 7, "name": "ship"}],
        "annotations": [{"id": n, "image_id": i, "category_id": 7, "bbox": b} for n, (i, b) in enumerate(notes)],
    }
    path.write_text(json.dumps(content | more))
    return path


def boxes_of(frame: pd.DataFrame) -> list[list[float]]:
    return frame[BOX].to_numpy(float).round(3).tolist()


@pytest.mark.parametrize("transform", [None, NORTH_UP])
def test_challenge_labels_are_pixels(tmp_path: Path, transform: Affine | None) -> None:
    # The numbers would do as longitude and latitude too, but not as the scene's (15 E, 45 N).
    scene = scene_at(tmp_path / "a.tif", transform)
    challenge(tmp_path / "a.json", ("Tank", 10, 5, 20, 12), ("Play Ground", 30.5, 20, 42, 31))
    frame = LabelReader({"Play Ground": "Playground"}).read([scene], None)
    assert boxes_of(frame) == [[10, 5, 20, 12], [30.5, 20, 42, 31]]
    assert frame.class_name.tolist() == ["Tank", "Playground"]
    assert set(frame.scene) == {scene.path}


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp", ".json"])
@pytest.mark.parametrize("crs", [UTM33, "EPSG:4326"])
def test_map_labels_through_a_sideways_transform(tmp_path: Path, suffix: str, crs: str) -> None:
    scene = scene_at(tmp_path / "a.tif", SIDEWAYS)
    on_map = box(500_015, 5_000_020, 500_036, 5_000_040)  # rows 5 to 12, columns 10 to 20
    frame = gpd.GeoDataFrame({"class_name": ["ship"]}, geometry=[on_map], crs=UTM33).to_crs(crs)
    frame.to_file(tmp_path / f"a{suffix}", driver="GeoJSON" if "json" in suffix else None)
    got = LabelReader().read([scene], None)
    np.testing.assert_allclose(got[BOX].to_numpy(float), [[10, 5, 20, 12]], atol=0.02)
    assert got.class_name.tolist() == ["ship"]


@pytest.mark.parametrize("crs", [UTM33, "EPSG:4326"])
def test_a_label_in_a_tilted_scene_keeps_its_own_size(tmp_path: Path, crs: str) -> None:
    scene = scene_at(tmp_path / "a.tif", TILTED)
    t = TILTED
    outline = affinity.affine_transform(box(10, 5, 20, 12), [t.a, t.b, t.d, t.e, t.c, t.f])
    path = tmp_path / "labels.gpkg"
    gpd.GeoDataFrame({"label": ["ship"]}, geometry=[outline], crs=UTM33).to_crs(crs).to_file(path)
    got = LabelReader().read([scene], path)
    np.testing.assert_allclose(got[BOX].to_numpy(float), [[10, 5, 20, 12]], atol=1e-3)


def test_challenge_properties_in_map_coordinates(tmp_path: Path) -> None:
    scene = scene_at(tmp_path / "a.tif")
    corner = gpd.GeoSeries([box(500_020, 4_999_976, 500_040, 4_999_990)], crs=UTM33).to_crs(4326).total_bounds
    challenge(tmp_path / "a.json", ("ship", *corner))  # no crs member, but inside the scene's longitude and latitude
    got = LabelReader().read([scene], None)
    np.testing.assert_allclose(got[BOX].to_numpy(float), [[10, 5, 20, 12]], atol=0.05)


def test_one_map_file_for_several_scenes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left = scene_at(tmp_path / "left.tif")
    right = scene_at(tmp_path / "right.tif", NORTH_UP @ Affine.translation(1000, 0))
    pixels = [box(10, 5, 20, 12), box(1010, 5, 1015, 9), box(500, 5, 510, 9)]  # the last lies between the scenes
    t = NORTH_UP
    shapes = [affinity.affine_transform(p, [t.a, t.b, t.d, t.e, t.c, t.f]) for p in pixels]
    path = tmp_path / "all.gpkg"
    gpd.GeoDataFrame({"class": ["a", "b", "c"]}, geometry=shapes, crs=UTM33).to_file(path)
    with caplog.at_level(logging.WARNING):
        got = LabelReader().read([left, right], path)
    assert boxes_of(got) == [[10, 5, 20, 12], [10, 5, 15, 9]]
    assert got.scene.tolist() == [left.path, right.path]
    assert [r.getMessage() for r in caplog.records] == ["Labels left out: 1 outside their scene."]


def test_coco_in_an_images_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scenes = [scene_at(tmp_path / "images" / name) for name in ("a.tif", "b.tif")]
    notes = [(1, [10.0, 5.0, 10.0, 7.0]), (0, [1.0, 2.0, 3.0, 4.0]), (2, [1.0, 2.0, 3.0, 4.0])]
    path = coco(tmp_path / "train.json", ["a.tif", "b.tif", "c.tif"], *notes)
    with caplog.at_level(logging.WARNING):
        got = LabelReader().read(scenes, path)
    assert boxes_of(got) == [[10, 5, 20, 12], [1, 2, 4, 6]]
    assert got.scene.tolist() == [scenes[1].path, scenes[0].path]
    assert got.class_name.tolist() == ["ship", "ship"]
    assert "1 of scenes that are not given" in caplog.text
    with pytest.raises(InputError, match=r"c\.tif"):
        coco_scenes(path)
    (tmp_path / "c.tif").touch()
    assert coco_scenes(path) == [scenes[0].path, scenes[1].path, str(tmp_path / "c.tif")]


@pytest.mark.parametrize("same_name", ["x/a.tif", "y/a.tif"])
def test_coco_tells_scenes_of_one_name_apart(tmp_path: Path, same_name: str) -> None:
    scenes = [scene_at(tmp_path / folder / "a.tif") for folder in "xy"]
    got = LabelReader().read(scenes, coco(tmp_path / "train.json", [same_name], (0, [1, 2, 3, 4])))
    assert got.scene.tolist() == [str(tmp_path / same_name)]


def test_labels_that_are_no_use_are_counted_in_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = scene_at(tmp_path / "a.tif", None).within((10, 0, 60, 40))
    notes = [
        [50.0, 30.0, 20.0, 8.0],  # centre at column 60: outside by no more than a half-open border
        [49.0, 30.0, 20.0, 20.0],  # centre at 59, 40: a row too low
        [49.0, 29.0, 20.0, 20.0],  # centre at 59, 39: kept, cut to the scene
        [0.0, 5.0, 19.0, 5.0],  # centre left of the area of interest
        [20.0, 5.0, 0.0, 5.0],
        [20.0, 5.0, 5.0, -1.0],
        [20.0, 5.0, -4.0, -4.0],  # two wrongs make no area
        [20.0, 5.0, float("nan"), 4.0],
    ]
    path = coco(tmp_path / "l.json", ["a.tif"], *[(0, n) for n in notes])
    with caplog.at_level(logging.WARNING):
        got = LabelReader().read([scene], path)
    assert boxes_of(got) == [[49, 29, 60, 40]]
    assert [r.getMessage() for r in caplog.records] == ["Labels left out: 4 of zero area, 3 outside their scene."]


def test_where_labels_are_looked_for(tmp_path: Path) -> None:
    scenes = [scene_at(tmp_path / f"{name}.tif", None) for name in "abc"]
    folder = tmp_path / "labels"
    folder.mkdir()
    challenge(folder / "b.json", ("folder", 1, 2, 3, 4))
    challenge(tmp_path / "a.json", ("beside", 5, 6, 7, 8))
    beside, given = LabelReader().read(scenes, None), LabelReader().read(scenes, folder)
    assert (beside.scene.tolist(), beside.class_name.tolist()) == ([scenes[0].path], ["beside"])
    assert (given.scene.tolist(), given.class_name.tolist()) == ([scenes[1].path], ["folder"])
    both = LabelReader().read(scenes, [str(folder), str(tmp_path / "a.json")])
    assert dict(zip(both.scene, both.class_name, strict=True)) == {scenes[0].path: "beside", scenes[1].path: "folder"}
    assert LabelReader().read(scenes[2:], None).empty


def test_the_class_attribute(tmp_path: Path) -> None:
    scene = scene_at(tmp_path / "a.tif")
    shape = Polygon([(500_020, 4_999_990), (500_040, 4_999_990), (500_040, 4_999_976), (500_020, 4_999_976)])
    gpd.GeoDataFrame({"kind": ["ship"]}, geometry=[shape], crs=UTM33).to_file(tmp_path / "a.gpkg")
    assert LabelReader(class_field="kind").read([scene], None).class_name.tolist() == ["ship"]
    assert LabelReader(default_class="thing").read([scene], None).class_name.tolist() == ["thing"]
    with pytest.raises(InputError, match=r"it has kind.*data\.class_field"):
        LabelReader().read([scene], None)
    with pytest.raises(InputError, match=r"set exemplars\.class_field, or exemplars\.default_class"):
        LabelReader(group="exemplars").read([scene], None)


COCO = '{"images": [{"id": 0, "file_name": "a.tif"}], "categories": [], "annotations": '


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", '{"type": "Topology"}'),
        ("a.json", COCO + '[{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}]}'),
        ("a.json", COCO + '[{"image_id": 0, "category_id": 1}]}'),
        ("a.json", '{"type": "FeatureCollection"}'),
        ("a.geojson", "{"),
        ("a.gpkg", "no package"),
    ],
)
def test_damaged_label_files_are_input_errors(tmp_path: Path, name: str, content: str) -> None:
    scene = scene_at(tmp_path / "a.tif", None)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        LabelReader().read([scene], None)


def test_what_is_missing_is_an_input_error(tmp_path: Path) -> None:
    scene = scene_at(tmp_path / "a.tif", None)
    with pytest.raises(InputError, match=r"data\.labels"):
        LabelReader().read([scene], tmp_path / "missing.gpkg")
    with pytest.raises(InputError, match=r"check truth\.$"):
        LabelReader(setting="truth").read([scene], tmp_path / "missing.gpkg")
    gpd.GeoDataFrame({"class": ["a"]}, geometry=[box(0, 0, 1, 1)], crs=UTM33).to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match=r"a\.tif has no coordinate"):
        LabelReader().read([scene], None)
