from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.scene import open_scene
from siamese_sat.errors import InputError
from siamese_sat.search.exemplar import Exemplar, ExemplarSource, by_class, draw_exemplars
from tests.conftest import NORTH_UP, UTM33, ramp, write_scene

BANDS = [1, 2, 3, 4]
Box = tuple[float, float, float, float]
LABELS: list[tuple[str, Box]] = [
    ("boat", (10, 20, 42, 40)),
    ("car", (50, 5, 60, 12)),
    ("boat", (60, 30, 90, 55)),
    ("boat", (5, 60, 15, 70)),
]


def load(searched: Sequence[int] = BANDS, /, **settings: Any) -> list[Exemplar]:  # noqa: ANN401
    return ExemplarSource(**settings).load(searched, "auto", ChipSpec())


def shown(found: Sequence[Exemplar]) -> list[tuple[str, str, Box]]:
    return [(e.class_name, e.scene.name, e.box) for e in found]


def ring(box: Box) -> list[list[float]]:
    x0, y0, x1, y1 = box
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def challenge(path: Path, labels: Sequence[tuple[str, Box]] = LABELS) -> None:
    features = [
        {
            "type": "Feature",
            "properties": {"Class Name": name},
            "geometry": {"type": "MultiPolygon", "coordinates": [[ring(b)]]},
        }
        for name, b in labels
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def coco(path: Path, file_name: str, labels: Sequence[tuple[str, Box]] = LABELS) -> None:
    names = sorted({name for name, _ in labels})
    content = {
        "images": [{"id": 7, "file_name": file_name, "width": 100, "height": 80}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": names.index(name), "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
            for i, (name, b) in enumerate(labels)
        ],
    }
    path.write_text(json.dumps(content))


def on_the_map(path: Path, crs: str = UTM33) -> None:
    shapes = [shapely.Polygon([NORTH_UP @ tuple(p) for p in ring(b)]) for _, b in LABELS]
    gpd.GeoDataFrame({"class": [name for name, _ in LABELS]}, geometry=shapes, crs=UTM33).to_crs(crs).to_file(path)


@pytest.fixture
def scene(tmp_path: Path) -> str:
    return write_scene(tmp_path / "town.tif", ramp(4, 80, 100), crs=UTM33, transform=NORTH_UP)


@pytest.mark.parametrize("form", ["challenge", "coco", "coco alone", "gpkg", "geojson", "shp", "elsewhere"])
def test_every_form_of_labels(scene: str, tmp_path: Path, form: str) -> None:
    settings: dict[str, Any] = {"scenes": scene}
    if form == "challenge":
        challenge(tmp_path / "town.json")
    elif form.startswith("coco"):
        settings = {"labels": str(tmp_path / "any.json"), **({} if "alone" in form else settings)}
        coco(tmp_path / "any.json", "town.tif")
    elif form == "elsewhere":
        settings["labels"] = [str(tmp_path / "labels" / "town.json")]
        (tmp_path / "labels").mkdir()
        challenge(tmp_path / "labels" / "town.json")
    else:
        on_the_map(tmp_path / f"town.{form}", "EPSG:4326" if form == "geojson" else UTM33)
    found = load(**settings)
    assert [e.class_name for e in found] == ["boat", "boat", "boat", "car"]
    expected = np.array([b for name, b in sorted(LABELS, key=lambda label: label[0])])
    assert np.allclose([e.box for e in found], expected, atol=0.01)
    assert {e.scene.path for e in found} == {scene}


def test_a_folder_of_chips(tmp_path: Path) -> None:
    for name, file, height, width in [
        ("boat", "b.tif", 52, 26),
        ("boat", "a.tif", 130, 130),
        ("kite", "c.png", 64, 64),
    ]:
        write_scene(tmp_path / "chips" / name / file, ramp(4, height, width))
    (tmp_path / "chips" / "readme.md").touch()
    found = load(chips=str(tmp_path / "chips"))
    assert [(e.class_name, e.scene.name) for e in found] == [("boat", "a.tif"), ("boat", "b.tif"), ("kite", "c.png")]
    # The image is the padded box: 15 % of the thing on each side.
    assert np.allclose(found[0].box, (15, 15, 115, 115))
    assert np.allclose(found[1].box, (3, 6, 23, 46))
    assert np.allclose(ChipSpec().pad(found[1].box), (0, 0, 26, 52))


def test_boxes_in_the_command_line(scene: str) -> None:
    rows = [[scene, 50, 5, 60.5, 12, "car"], [scene, 10, 20, 42, 40, "boat"], [scene, 90, 70, 110, 90, 3]]
    found = load(boxes=rows)
    assert shown(found) == [
        ("3", "town.tif", (90, 70, 110, 90)),
        ("boat", "town.tif", (10, 20, 42, 40)),
        ("car", "town.tif", (50, 5, 60.5, 12)),
    ]


def test_kinds_are_added_up(scene: str, tmp_path: Path) -> None:
    challenge(tmp_path / "town.json", LABELS[:2])
    write_scene(tmp_path / "chips" / "kite" / "a.tif", ramp(4, 64, 64))
    found = load(scenes=scene, chips=str(tmp_path / "chips"), boxes=[[scene, 0, 0, 9, 9, "boat"]])
    assert {name: len(group) for name, group in by_class(found).items()} == {"boat": 2, "car": 1, "kite": 1}
    assert list(by_class(found[::-1])) == ["boat", "car", "kite"]


def test_bands_are_those_of_the_exemplars_where_they_differ(scene: str) -> None:
    rows = [[scene, 0, 0, 9, 9, "boat"]]
    assert load([3, 2, 1], boxes=rows)[0].scene.bands == (3, 2, 1)
    assert load([3, 2, 1], boxes=rows, bands=[4, 2, 1])[0].scene.bands == (4, 2, 1)


def test_aliases_and_area_of_interest(scene: str, tmp_path: Path) -> None:
    challenge(tmp_path / "town.json")
    found = load(scenes=scene, aliases={"car": "vehicle"}, aoi=[40, 0, 100, 80])
    assert [(e.class_name, e.box) for e in found] == [("boat", LABELS[2][1]), ("vehicle", LABELS[1][1])]


def test_background_is_nothing_to_search_for(scene: str, tmp_path: Path) -> None:
    challenge(tmp_path / "town.json", [*LABELS, ("background", (0, 0, 5, 5))])
    assert {e.class_name for e in load(scenes=scene)} == {"boat", "car"}


def test_the_draw_is_seeded_and_the_same_whatever_else_is_asked(scene: str, tmp_path: Path) -> None:
    many: list[tuple[str, Box]] = [("boat", (i, 0, i + 5, 5)) for i in range(30)]
    many += [("car", (i, 10, i + 5, 15)) for i in range(30)]
    challenge(tmp_path / "town.json", many)
    first = load(scenes=scene, per_class=4)
    assert [len(group) for group in by_class(first).values()] == [4, 4]
    assert len({e.box for e in first}) == 8
    assert shown(load(scenes=scene, per_class=4)) == shown(first)
    assert shown(load(scenes=scene, per_class=4, seed=1)) != shown(first)
    cars = [e for e in first if e.class_name == "car"]
    assert shown(load(scenes=scene, per_class=4, classes=["car"])) == shown(cars)
    assert len(load(scenes=scene, per_class=None)) == 60


def test_five_of_each_by_default(scene: str, tmp_path: Path) -> None:
    challenge(tmp_path / "town.json", [("boat", (i, 0, i + 5, 5)) for i in range(30)])
    assert len(load(scenes=scene)) == 5


@pytest.mark.parametrize(
    ("box", "aoi", "expected"),
    [
        ((20, 20, 40, 40), None, False),
        ((2, 2, 98, 78), None, False),
        ((0, 20, 20, 40), None, True),
        ((20, 0.6, 40, 20), None, True),
        ((80, 20, 99, 40), None, True),
        ((20, 60, 40, 80), None, True),
        ((-9, 20, 20, 40), None, True),  # labelled beyond the border
        ((20, 60, 40, 95.5), None, True),
        ((20, 20, 40, 40), (20, 0, 100, 80), True),
        ((20, 20, 40, 40), (10, 10, 50, 50), False),
        ((80, 79, 100, 80), (0, 0, 100, 80), True),
    ],
)
def test_what_a_border_cuts(scene: str, box: Box, aoi: Box | None, expected: bool) -> None:
    assert Exemplar("boat", open_scene(scene, BANDS).within(aoi), box).cut is expected


@pytest.mark.parametrize(("cut", "said"), [(0, None), (1, "1 of 3"), (3, "3 of 3")])
def test_exemplars_that_a_border_cuts_are_told(
    scene: str, cut: int, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [[scene, 0 if i < cut else 30, 20, 50, 40, "boat"] for i in range(3)]
    with caplog.at_level(logging.WARNING):
        load(boxes=rows)
    assert [said in r.getMessage() for r in caplog.records if said] == [True] * bool(said)
    assert len(caplog.records) == bool(said)


def test_whole_ones_are_drawn_first(scene: str) -> None:
    town = open_scene(scene, BANDS)
    # Every other one is cut: 0, 2, 4, ...
    many = [Exemplar("boat", town, (5 + i, i % 2 * 9, 15 + i, 30)) for i in range(20)]
    for seed in range(5):
        drawn = draw_exemplars(many, 10, np.random.default_rng(seed))
        assert drawn == many[1::2], "all that are whole, in their own order"
        few = draw_exemplars(many, 4, np.random.default_rng(seed))
        assert not any(e.cut for e in few)
        assert few == [e for e in many if e in few]
        more = draw_exemplars(many, 13, np.random.default_rng(seed))
        assert sum(e.cut for e in more) == 3
        assert more == [e for e in many if e in more]
        assert few == draw_exemplars(many, 4, np.random.default_rng(seed))
    assert len({tuple(e.box for e in draw_exemplars(many, 4, np.random.default_rng(s))) for s in range(9)}) > 5
    for count in (None, 20, 99):
        assert draw_exemplars(many, count, np.random.default_rng(0)) == many


def test_labelled_scenes_give_whole_exemplars_first(
    scene: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut: list[tuple[str, Box]] = [("boat", (i, 0, i + 5, 5)) for i in range(40)]
    whole: list[tuple[str, Box]] = [("boat", (i, 50, i + 5, 55)) for i in (10, 20, 30)]
    challenge(tmp_path / "town.json", [*cut, *whole])
    assert [e.box for e in load(scenes=scene, per_class=3)] == [b for _, b in whole]
    assert not caplog.records
    assert sum(e.cut for e in load(scenes=scene)) == 2
    assert "2 of 5" in caplog.text


def test_nothing_given_is_known() -> None:
    assert not ExemplarSource().given
    assert ExemplarSource(boxes=[]).given


def one_sentence(error: pytest.ExceptionInfo[InputError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "row",
    [
        ["{scene}", 1, 2, 3, 4],
        ["{scene}", 1, 2, 3, 4, "boat", "more"],
        ["{scene}", 1, 2, "three", 4, "boat"],
        ["{scene}", 1, 2, None, 4, "boat"],
        ["{scene}", 100, 10, 120, 20, "boat"],
        ["{scene}", -20, 10, 0, 20, "boat"],
        ["{scene}", 10, 20, 10, 40, "boat"],
        ["{scene}", 30, 20, 10, 40, "boat"],
        ["{scene}", 10, 20, float("nan"), 40, "boat"],
        "{scene}",
        5,
    ],
)
def test_a_row_that_is_no_box(scene: str, row: list[Any] | str | int) -> None:
    filled = [scene if v == "{scene}" else v for v in row] if isinstance(row, list) else row
    with pytest.raises(InputError) as error:
        load(boxes=[filled])
    one_sentence(error, "exemplars.boxes")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chips": "{0}/none"}, ["none", "exemplars.chips"]),
        ({"chips": "{0}/empty"}, ["empty", "exemplars.chips"]),
        ({"chips": "{0}/hollow"}, ["boat"]),
        ({"chips": "{0}/narrow"}, ["bands"]),
        ({"scenes": "{0}/none.tif"}, ["none.tif"]),
        ({"scenes": "{0}/town.tif", "labels": "{0}/none.json"}, ["none.json"]),
        ({"scenes": "{0}/bare.tif"}, ["exemplars.labels"]),
        ({"scenes": "{0}/town.tif", "classes": ["kite"]}, ["kite", "boat, car"]),
        ({"boxes": [["{0}/none.tif", 0, 0, 5, 5, "boat"]]}, ["none.tif"]),
        ({"boxes": []}, ["exemplars.classes"]),
        ({"setting": "negatives", "boxes": []}, ["negatives.classes"]),
        ({"setting": "negatives", "chips": "{0}/none"}, ["none", "negatives.chips"]),
        ({"setting": "negatives", "scenes": "{0}/bare.tif"}, ["negatives.labels"]),
        ({"setting": "negatives", "scenes": "{0}/town.tif", "classes": ["kite"]}, ["negatives.classes", "kite"]),
        ({"setting": "negatives", "boxes": [["{0}/town.tif", 0, 0, 5, "boat"]]}, ["negatives.boxes"]),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    scene: str, tmp_path: Path, settings: dict[str, Any], words: list[str]
) -> None:
    challenge(tmp_path / "town.json")
    write_scene(tmp_path / "bare.tif", ramp(4, 20, 20))
    write_scene(tmp_path / "narrow" / "boat" / "a.tif", ramp(3, 20, 20))
    (tmp_path / "hollow" / "boat").mkdir(parents=True)
    (tmp_path / "empty").mkdir()

    def fill(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list):
            return [fill(v) for v in value]
        return value.format(tmp_path) if isinstance(value, str) else value

    with pytest.raises(InputError) as error:
        load(**{k: fill(v) for k, v in settings.items()})
    one_sentence(error, *words)


def test_what_is_too_small_to_show_anything_is_left_out(scene: str, caplog: pytest.LogCaptureFixture) -> None:
    good, thin, dot = [30, 20, 40, 30], [30, 20, 40, 21], [50, 30, 52, 32]
    with caplog.at_level(logging.WARNING):
        found = load(boxes=[[scene, *box, "boat"] for box in (good, thin, dot)])
    assert [e.box for e in found] == [tuple(good), tuple(thin)]
    assert "1 exemplars smaller than 3 pixels" in caplog.text
    with pytest.raises(InputError, match="smaller than 3 pixels") as error:
        load(boxes=[[scene, *good, "boat"], [scene, *dot, "car"]])
    assert "car exemplar at (50" in str(error.value)
    assert scene in str(error.value)


def test_a_box_the_wrong_way_round_is_told(scene: str) -> None:
    with pytest.raises(InputError, match="x_min must be below x_max"):
        load(boxes=[[scene, 40, 20, 30, 30, "boat"]])
    with pytest.raises(InputError, match="outside the 100 x 80 scene"):
        load(boxes=[[scene, 140, 20, 150, 30, "boat"]])


def test_slivers_are_drawn_last(scene: str) -> None:
    rows = [Exemplar("boat", open_scene(scene, BANDS), (20.0 + i, 20, 22.0 + i, 22)) for i in range(30)]
    good = Exemplar("boat", open_scene(scene, BANDS), (30, 30, 50, 50))
    for seed in range(5):
        assert good in draw_exemplars([*rows, good], 3, np.random.default_rng(seed))
