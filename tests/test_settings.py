from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rasterio.enums import ColorInterp

from siamese_sat.data.annotation import LabelReader
from siamese_sat.data.scene import guess_bands, open_scene
from siamese_sat.errors import InputError
from siamese_sat.search.patch import STEEPEST, lean_of, view_sides
from siamese_sat.searching import search
from siamese_sat.settings import check_search
from tests.conftest import write_scene

ROOT = Path(__file__).resolve().parents[1]


def settings(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("search", list(overrides))


@pytest.mark.parametrize(
    "override",
    [
        "search.nms_iou=banana", "search.nms_iou=1.5", "search.batch_size=banana", "search.batch_size=0",
        "search.min_valid=7", "bands=3", "bands=[a,b]", "alpha=foo", "search.method.stage=foo",
        "search.method.views=2.5", "search.method.box_scale=-1", "search.method.samples=0", "output.vector=[shp]",
        "search.threshold=per_class", "exemplars.per_class=-1", "mode=info", "mode=foo", "query.candidates=0",
        "query.least=2", "search.expansion.rounds=-1", "search.expansion.hits=0", "search.expansion.least=2",
        "search.method.max_zoom=0", "search.expansion.hits=null", "search.method.contrast=abc", "search.nms_iou=null",
        "search.method.match_detail=maybe",
        "search.method.deep_weight=null", "output.ranking=0", "indexing.vectors=both", "indexing.shrinkage=-1",
    ],
)  # fmt: skip
def test_impossible_search_settings_are_named(override: str) -> None:
    with pytest.raises(InputError) as told:
        check_search(settings(override))
    assert override.split("=")[0] in str(told.value)


def test_the_defaults_and_both_methods_pass() -> None:
    check_search(settings())
    check_search(settings("search/method=window", "search.threshold=per_class", "ckpt_path=best.ckpt"))


def test_aliases_are_set_on_the_command_line() -> None:
    cfg = settings("exemplars.aliases={Play Ground: Playground}")
    assert dict(cfg.exemplars.aliases) == {"Play Ground": "Playground"}


def test_a_damaged_scene_leaves_before_the_template_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("bad", "good"):
        write_scene(tmp_path / f"{name}.tif", rng.integers(0, 255, (3, 160, 160)).astype("uint8"))
    whole = (tmp_path / "bad.tif").read_bytes()
    (tmp_path / "bad.tif").write_bytes(whole[: len(whole) // 2])
    good = tmp_path / "good.tif"
    result = search(
        settings(
            f"scenes={tmp_path}", f"exemplars.boxes=[[{good},60,60,90,90,thing]]", "model=resnet18",
            "model.weights=null", f"paths.output_dir={tmp_path / 'out'}", "search.precision=fp32", "search.device=cpu",
            "output.overlays=0", "output.page=false",
        )
    )  # fmt: skip
    assert [Path(p).name for p in result.failed] == ["bad.tif"]
    assert (tmp_path / "out" / "detections.csv").is_file()


def test_map_labels_without_a_crs_are_told(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.ones((1, 20, 20), "uint8"), crs="EPSG:32632")
    ring = "[[465640,5245784],[465648,5245784],[465648,5245778],[465640,5245784]]"
    (tmp_path / "boats.geojson").write_text(
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{"class":"boat"},'
        f'"geometry":{{"type":"Polygon","coordinates":[{ring}]}}}}]}}'
    )
    with pytest.raises(InputError, match="coordinate reference system"):
        LabelReader().read([open_scene(path, [1])], tmp_path / "boats.geojson")


def test_one_label_file_of_two_scenes_is_told(tmp_path: Path) -> None:
    scenes = [open_scene(write_scene(tmp_path / n, np.ones((1, 20, 20), "uint8")), [1]) for n in ("a.tif", "a.tiff")]
    (tmp_path / "a.json").write_text('{"type":"FeatureCollection","features":[]}')
    with pytest.raises(InputError, match="belong to both"):
        LabelReader().read(scenes, None)


def test_labels_that_reach_into_the_area_of_interest_are_known(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.ones((1, 40, 40), "uint8"))
    (tmp_path / "a.json").write_text(
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{"Class Name":"boat"},"geometry":'
        '{"type":"MultiPolygon","coordinates":[[[[15,5],[35,5],[35,15],[15,15],[15,5]]]]}}]}'
    )
    reader = LabelReader()
    assert reader.read([open_scene(path, [1]).within([0, 0, 20, 40])], None).empty
    assert reader.reaching.iloc[0, :4].tolist() == [15, 5, 20, 15]


def test_bands_of_a_colour_picture_with_a_mask(tmp_path: Path) -> None:
    pixels = np.full((4, 30, 30), 255, "uint8")
    pixels[:3] = np.random.default_rng(0).integers(0, 255, (3, 30, 30))
    rgba = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    assert guess_bands(write_scene(tmp_path / "mask.tif", pixels, colorinterp=rgba)) == [3, 2, 1]
    pixels[3] = np.random.default_rng(1).integers(0, 255, (30, 30))
    assert guess_bands(write_scene(tmp_path / "nir.tif", pixels, colorinterp=rgba)) == [1, 2, 3, 4]


def test_boxes_turn_with_what_leans() -> None:
    import torch

    cells = torch.zeros(1, 9, 9)
    for i in range(9):
        cells[0, i, i] = 1.0
    lean = lean_of(cells, (49.0, 49.0), 8, 49.0)
    assert lean == STEEPEST
    # A slim thing across a square box, turned by an eighth, lies along an axis: its box is long and thin.
    sides, trust = view_sides((49.0, 49.0), lean, 8, 49.0, 0.1)
    assert sides[0].tolist() == [49, 49]
    assert max(sides[1]) / min(sides[1]) == pytest.approx(3.0, rel=1e-6)
    assert trust.tolist() == [1, 0.1] * 4
    # A disc keeps its box whichever way it is turned.
    assert view_sides((49.0, 49.0), 0.0, 8, 49.0, 0.1)[0] == pytest.approx(49)


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.devices=[]"], ["engine.devices=2"], ["engine.devices=cpu"], ["engine.split_mpx=null"],
        ["engine.gpus=1.5", "engine=ray"], ["engine.cpus=null", "engine=ray"],
        ["engine.gpus=0", "engine=ray", "search.device=cuda"], ["search.expansion.rounds=1", "index=archive"],
    ],
)  # fmt: skip
def test_impossible_engines_and_expansions_are_named(overrides: list[str]) -> None:
    with pytest.raises(InputError) as told:
        check_search(settings(*overrides))
    assert overrides[0].split("=")[0] in str(told.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("search/method=window", "search.threshold=per_class"), "ckpt_path"),
        (
            ("search/method=window", "search.threshold=per_class", "ckpt_path=a", "search.method.calibration=scenes"),
            "search.method.calibration=training",
        ),
        (("search.threshold=2",), "between 0 and 1"),
        (("search.threshold=-0.1",), "between 0 and 1"),
        (("feedback.negatives=[1]",), "feedback.detections"),
        (("feedback.positives=[1]",), "feedback.detections"),
    ],
)
def test_what_cannot_be_is_told_before_a_search(wrong: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_search(settings(*wrong))
