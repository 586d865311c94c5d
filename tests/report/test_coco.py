from __future__ import annotations

import json
from pathlib import Path

import pytest

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.report.table import write_coco
from tests.report.helpers import make_scene, table

DETECTIONS = table([10, 5, 20.5, 9, "Pond", "b", 0.9], [0, 0, 4, 2, "Boat", "a", 0.25])


@pytest.fixture
def scenes(tmp_path: Path) -> dict[str, Scene]:
    return {name: make_scene(tmp_path / f"{name}.tif") for name in ("a", "b", "empty")}


def test_results_load_and_mean_what_they_did(tmp_path: Path, scenes: dict[str, Scene]) -> None:
    coco = pytest.importorskip("faster_coco_eval")
    path = write_coco(DETECTIONS, scenes, tmp_path / "d.json")
    truth = coco.COCO(str(tmp_path / "d_images.json"))
    results = truth.loadRes(str(path))
    first, second = results.loadAnns(results.getAnnIds())
    assert first["bbox"] == [10, 5, 10.5, 4]
    assert first["area"] == 42
    assert first["score"] == 0.9
    image = truth.loadImgs([first["image_id"]])[0]
    assert (image["file_name"], image["width"], image["height"]) == ("b", 60, 40)
    assert truth.loadCats([first["category_id"]])[0]["name"] == "Pond"
    assert truth.loadCats([second["category_id"]])[0]["name"] == "Boat"
    assert len(truth.getImgIds()) == 3
    write_coco(DETECTIONS[:0], scenes, tmp_path / "none.json")
    assert coco.COCO(str(tmp_path / "none_images.json")).loadRes(str(tmp_path / "none.json")).getAnnIds() == []


def test_ids_follow_a_truth_file(tmp_path: Path, scenes: dict[str, Scene], caplog: pytest.LogCaptureFixture) -> None:
    write_coco(DETECTIONS, scenes, tmp_path / "d.json", {"a": 70, "b": 71, "empty": 3}, {"Boat": 9, "Car": 4})
    results = json.loads((tmp_path / "d.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in results] == [(71, 10), (70, 9)]
    skeleton = json.loads((tmp_path / "d_images.json").read_text())
    assert {c["name"]: c["id"] for c in skeleton["categories"]} == {"Boat": 9, "Car": 4, "Pond": 10}
    assert skeleton["annotations"] == []
    assert "'Pond'" in caplog.text
    assert "'Boat'" not in caplog.text


def test_a_detection_in_no_scene_is_refused(tmp_path: Path, scenes: dict[str, Scene]) -> None:
    del scenes["b"]
    with pytest.raises(InputError, match="'b'"):
        write_coco(DETECTIONS, scenes, tmp_path / "d.json")
