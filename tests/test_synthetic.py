from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from siamese_sat.errors import InputError
from siamese_sat.synthetic import (
    CLASSES,
    DatasetPaths,
    SceneObject,
    make_dataset,
    make_scene,
    scene,
    write_labels,
    write_scene,
)
from siamese_sat.synthetic.__main__ import main
from siamese_sat.synthetic.draw import Sprite
from siamese_sat.synthetic.objects import draw_object

LAND = [name for name in CLASSES if name != "ship"]
SUN = (0.6, 0.8)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def names(labels: Path) -> list[str]:
    return [f["properties"]["Class Name"] for f in json.loads(labels.read_text())["features"]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    return make_dataset(
        tmp_path_factory.mktemp("synthetic"),
        train_scenes=2,
        search_scenes=2,
        novel=["stadium", "ship"],
        size=512,
        per_class=1,
        clutter=20,
        progress=False,
    )


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, objects = make_scene(seeded(3), 320, 256, ["aircraft"], 2, 10)
    again, same = make_scene(seeded(3), 320, 256, ["aircraft"], 2, 10)
    other, _ = make_scene(seeded(4), 320, 256, ["aircraft"], 2, 10)
    assert first.shape == (4, 256, 320)
    assert first.dtype == np.uint16
    np.testing.assert_array_equal(first, again)
    assert objects == same
    assert (first != other).mean() > 0.9


@pytest.mark.parametrize("name", CLASSES)
def test_the_box_of_a_sprite_is_the_extent_of_what_it_covers(name: str) -> None:
    for seed in range(4):
        sprite = draw_object(name, seeded(seed), SUN)
        x0, y0, x1, y1 = sprite.box
        cover = sprite.solid[4]
        assert 14 <= max(x1 - x0, y1 - y0) <= 75
        assert cover[y0:y1, x0:x1].max() == pytest.approx(1)
        rows, columns = np.flatnonzero((cover > 0.25).any(1)), np.flatnonzero((cover > 0.25).any(0))
        extent = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(sprite.box, extent)).max() <= 1
        assert sprite.shadow.min() >= 0
        # Nothing may be cut off at the sprite's own edge.
        assert not cover[[0, -1]].any()
        assert not cover[:, [0, -1]].any()


def test_boxes_in_a_scene_are_tight_round_what_differs_from_the_bare_land(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bare(name: str, rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
        sprite = draw_object(name, rng, sun)
        solid = sprite.solid.copy()
        solid[:4] = 9000 * solid[4]
        zero = np.zeros_like
        return replace(sprite, ground=zero(sprite.ground), shadow=zero(sprite.shadow), solid=solid)

    monkeypatch.setattr(scene, "draw_object", bare)
    with_objects, objects = make_scene(seeded(5), 512, 512, LAND, 2, 0)
    without, _ = make_scene(seeded(5), 512, 512, LAND, 0, 0)
    differs = np.abs(with_objects.astype(int) - without).max(0) > 3000
    assert len(objects) == 2 * len(LAND)
    for o in objects:
        around = differs[o.y_min - 3 : o.y_max + 3, o.x_min - 3 : o.x_max + 3]
        rows, columns = np.flatnonzero(around.any(1)) - 3, np.flatnonzero(around.any(0)) - 3
        width, height = o.x_max - o.x_min, o.y_max - o.y_min
        extent = (columns[0], rows[0], columns[-1] + 1 - width, rows[-1] + 1 - height)
        assert np.abs(extent).max() <= 1, o
        differs[o.y_min - 1 : o.y_max + 1, o.x_min - 1 : o.x_max + 1] = False
    assert not differs.any()


def test_objects_are_inside_apart_and_ships_on_water() -> None:
    pixels, objects = make_scene(seeded(1), 640, 640, CLASSES, 3, 30)
    taken = np.zeros((640, 640), int)
    for o in objects:
        assert 0 <= o.x_min < o.x_max <= 640
        assert 0 <= o.y_min < o.y_max <= 640
        taken[o.y_min : o.y_max, o.x_min : o.x_max] += 1
    assert taken.max() == 1
    assert sorted(o.class_name for o in objects) == sorted(CLASSES * 3)
    for o in (o for o in objects if o.class_name == "ship"):
        corner = pixels[3, o.y_min - 3 : o.y_min, o.x_min - 3 : o.x_min]
        assert np.median(corner) < 500, "water is dark in the near infrared"


def test_reflectances_are_plausible() -> None:
    pixels, objects = make_scene(seeded(2), 512, 512, ["stadium", "swimming pool"], 3, 30)
    assert 300 < np.median(pixels[:3]) < 2000
    assert np.percentile(pixels[3], 80) > 2200
    assert np.percentile(pixels[3], 5) < 500
    for o in objects:
        middle = pixels[:, (o.y_min + o.y_max) // 2, (o.x_min + o.x_max) // 2].astype(int)
        if o.class_name == "swimming pool":
            assert middle[0] > middle[2] > middle[3]


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(InputError, match="zeppelin"):
        make_scene(seeded(), 128, 128, ["zeppelin"], 1, 0)
    with pytest.raises(InputError, match="no room"):
        make_scene(seeded(), 128, 128, ["stadium"], 9, 0)
    with pytest.raises(InputError, match="zeppelin"):
        make_dataset(Path("nowhere"), novel=["zeppelin"])
    with pytest.raises(InputError, match="Every class is novel"):
        make_dataset(Path("nowhere"), novel=CLASSES)
    with pytest.raises(ValueError, match=r"\[4, h, w\]"):
        write_scene(Path("nowhere.tif"), np.zeros((3, 8, 8), np.uint16))
    with pytest.raises(InputError, match="cannot be written"):
        write_scene(Path("/nowhere/at/all.tif"), np.zeros((4, 8, 8), np.uint16))


@pytest.mark.parametrize("tiled", [True, False])
def test_the_geotiff_is_georeferenced_and_its_fourth_band_is_data(tmp_path: Path, tiled: bool) -> None:
    pixels = seeded().integers(1, 5000, (4, 300, 290)).astype(np.uint16)
    write_scene(tmp_path / "s.tif", pixels, crs="EPSG:32631", origin=(4e5, 5e6), resolution=0.5, tiled=tiled)
    with rasterio.open(tmp_path / "s.tif") as source:
        assert source.crs.to_epsg() == 32631
        assert tuple(source.bounds) == (4e5, 5e6 - 150, 4e5 + 145, 5e6)
        assert source.res == (0.5, 0.5)
        assert source.dtypes == ("uint16",) * 4
        assert source.descriptions == ("B", "G", "R", "NIR")
        assert ColorInterp.alpha not in source.colorinterp
        assert source.compression.name == "deflate"
        assert source.profile["tiled"] is tiled
        np.testing.assert_array_equal(source.read(), pixels)


def test_labels_are_pixel_polygons_with_a_class_name(tmp_path: Path) -> None:
    write_labels(tmp_path / "s.json", [SceneObject("ship", 10, 20, 40, 35)])
    assert json.loads((tmp_path / "s.json").read_text()) == {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"Class Name": "ship"},
                "geometry": {
                    "type": "MultiPolygon",
                    "coordinates": [[[[10, 20], [40, 20], [40, 35], [10, 35], [10, 20]]]],
                },
            }
        ],
    }


def test_novel_classes_are_not_in_training_but_in_truth_and_exemplars(dataset: DatasetPaths) -> None:
    train = sorted(dataset.train.glob("*.json"))
    assert [p.with_suffix(".tif") for p in train] == sorted(dataset.train.glob("*.tif"))
    assert len(train) == 2
    for labels in train:
        assert set(names(labels)) == set(CLASSES) - {"stadium", "ship"}
    for picture in sorted(dataset.search.iterdir()):
        assert set(names(dataset.truth / f"{picture.stem}.json")) == set(CLASSES)
    for name in CLASSES:
        assert names(dataset.exemplar_labels).count(name) >= 5


def test_scenes_of_a_dataset_are_all_different_and_apart_on_the_map(dataset: DatasetPaths) -> None:
    tifs = [dataset.exemplar_scene, *dataset.train.glob("*.tif"), *dataset.search.glob("*.tif")]
    assert len(tifs) == 5
    bounds = []
    for tif in tifs:
        with rasterio.open(tif) as source:
            bounds.append(source.bounds)
    for i, a in enumerate(bounds):
        for b in bounds[:i]:
            assert rasterio.coords.disjoint_bounds(a, b)


def test_the_command_line_gives_what_the_function_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "256", "--train-scenes", "1", "--search-scenes", "0", "--per-class", "1"]
    arguments += ["--exemplars-per-class", "1", "--clutter", "5", "--seed", "7", "--novel", "ship"]
    assert main([str(tmp_path / "a"), *arguments]) == 0
    assert str(tmp_path / "a" / "train") in capsys.readouterr().out
    again = make_dataset(
        tmp_path / "b",
        train_scenes=1,
        search_scenes=0,
        novel=["ship"],
        size=256,
        seed=7,
        per_class=1,
        exemplars_per_class=1,
        clutter=5,
        progress=False,
    )
    for name in ("train/scene_00.tif", "train/scene_00.json", "exemplars/exemplars.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert again.train == tmp_path / "b" / "train"
    assert main([str(tmp_path), "--size", "64"]) == 1
    assert "no room" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("here already")
    assert main([str(tmp_path / "file" / "there")]) == 1
    told = capsys.readouterr().err
    assert "give another folder" in told
    assert str(tmp_path / "file") in told
