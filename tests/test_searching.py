from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from faster_coco_eval import COCO
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from rasterio.windows import Window
from safetensors.torch import save_file

from siamese_sat import outcome
from siamese_sat.data.chip import ChipSpec, cut_chip
from siamese_sat.data.scene import SceneReader, open_scene
from siamese_sat.errors import InputError
from siamese_sat.evaluation.verdict import Verdict
from siamese_sat.model.backbone import Backbone
from siamese_sat.model.embedder import Embedder, EmbedderSpec
from siamese_sat.report import results
from siamese_sat.report.results import Results, write_results
from siamese_sat.searching import SearchResult, search
from tests.conftest import NORTH_UP, UTM33, write_scene
from tests.search.conftest import RADIOMETRY, Correlation, ground, plant, thing, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SEVEN = ["x_min", "y_min", "x_max", "y_max", "class_name", "filename", "score"]
MAP = ["map_x_min", "map_y_min", "map_x_max", "map_y_max", "crs"]
BOAT, RAFT = thing(1, 40, 40), thing(2, 80, 80)  # windows of 52 and 104, places 26 and 52 apart
Box = tuple[int, int, int, int]


@dataclass
class World:
    """Two scenes to search, one to show exemplars, a checkpoint.

    Attributes:
        folder: where they lie; its folder ``scenes`` has port.tif (no place on the map) and town.tif (UTM).
        ckpt: of `Correlation`.
        truth: class, file, box.
        boxes: the exemplars as a setting.
    """

    folder: Path
    ckpt: str
    truth: list[tuple[str, str, Box]]
    boxes: str

    @property
    def scenes(self) -> Path:
        return self.folder / "scenes"

    def config(self, *settings: str, exemplars: str | None = None) -> DictConfig:
        overrides = [
            f"ckpt_path={self.ckpt}",
            f"scenes={self.scenes}",
            f"paths.output_dir={self.folder / 'out'}",
            "search/method=window",
            "search.method.calibration=training",
            "search.device=cpu",
            "search.precision=fp32",
            "search.threshold=0.9",
            "output.overlays=0",
            "output.page=false",
            exemplars or f"exemplars.boxes={self.boxes}",
            *settings,
        ]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("search", overrides)

    def search(self, *settings: str, exemplars: str | None = None) -> SearchResult:
        return search(self.config(*settings, exemplars=exemplars))

    @property
    def out(self) -> Path:
        return self.folder / "out"


def found(result: SearchResult) -> list[tuple[str, str, Box]]:
    rows = result.detections
    boxes = rows[SEVEN[:4]].round(4).to_numpy().tolist()
    return sorted((c, f, tuple(b)) for c, f, b in zip(rows.class_name, rows.filename, boxes, strict=True))


@pytest.fixture
def world(tmp_path: Path, save_model: Callable[..., str]) -> World:
    truth: list[tuple[str, str, Box]] = []
    port, town = ground(260, 312), ground(260, 312)
    # The same place in both scenes: one must not suppress the other.
    truth.append(("boat", "port.tif", plant(port, BOAT, 6 + 26 * 2, 6 + 26)))
    truth.append(("boat", "town.tif", plant(town, BOAT, 6 + 26 * 2, 6 + 26)))
    truth.append(("boat", "town.tif", plant(town, BOAT, 6 + 26 * 8, 6)))
    truth.append(("raft", "town.tif", plant(town, RAFT, 12 + 52 * 4, 12 + 52 * 3)))
    write_scene(tmp_path / "scenes" / "port.tif", port)
    write_scene(tmp_path / "scenes" / "town.tif", town, crs=UTM33, transform=NORTH_UP)
    shown = ground(260, 312)
    rows = [[*plant(shown, BOAT, 30, 30), "boat"], [*plant(shown, RAFT, 130, 130), "raft"]]
    path = write_scene(tmp_path / "shown.tif", shown)
    boxes = "[" + ",".join(f"[{path},{','.join(map(str, row))}]" for row in rows) + "]"
    return World(tmp_path, save_model(), sorted(truth), boxes)


@pytest.fixture(autouse=True)
def save_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    from siamese_sat.model import checkpoint

    monkeypatch.setattr(checkpoint, "Embedder", Correlation)
    return lambda **carried: write_checkpoint(tmp_path / "model.ckpt", **carried)


def label(path: Path, rows: Sequence[tuple[str, Box]]) -> None:
    """In the challenge's form."""
    features = []
    for name, (x0, y0, x1, y1) in rows:
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        geometry = {"type": "MultiPolygon", "coordinates": [[ring]]}
        features.append({"type": "Feature", "properties": {"Class Name": name}, "geometry": geometry})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_everything_is_found_at_its_place_and_written(world: World) -> None:
    result = world.search("output.vector=[gpkg,geojson,parquet]", "output.overlays=20", "output.page=true")
    assert found(result) == world.truth
    assert not result.failed
    assert result.evaluation is None
    assert result.detections.score.is_monotonic_decreasing
    assert result.detections.score.min() > 0.999
    assert result.files[0] == world.out / "detections.csv"
    assert all(path.is_file() for path in result.files)
    names = {str(p.relative_to(world.out)) for p in result.files}
    assert names >= {
        "detections.csv", "detections.gpkg", "detections.geojson", "detections.parquet", "detections.coco.json",
        "overlays/town.png", "overlays/port.png", "report.html",
    }  # fmt: skip
    page = (world.out / "report.html").read_text()
    assert "boat" in page
    assert "town.tif" in page


def test_the_table(world: World) -> None:
    result = world.search()
    table = pd.read_csv(world.out / "detections.csv")
    assert list(table.columns) == SEVEN + MAP
    assert table[SEVEN[:6]].equals(result.detections[SEVEN[:6]].astype(dict.fromkeys(SEVEN[:4], table.x_min.dtype)))
    assert table.score.is_monotonic_decreasing
    port, town = table[table.filename == "port.tif"], table[table.filename == "town.tif"]
    assert port[MAP].isna().all(axis=None)
    assert set(town.crs) == {UTM33}
    # Two metres a pixel from (500000, 5000000) down.
    assert np.allclose(town.map_x_min, 500_000 + 2 * town.x_min)
    assert np.allclose(town.map_x_max, 500_000 + 2 * town.x_max)
    assert np.allclose(town.map_y_max, 5_000_000 - 2 * town.y_min)
    assert np.allclose(town.map_y_min, 5_000_000 - 2 * town.y_max)


def test_map_files_open_and_lie_right(world: World) -> None:
    world.search("output.vector=[gpkg,geojson,parquet]")
    frames = {
        "gpkg": gpd.read_file(world.out / "detections.gpkg"),
        "geojson": gpd.read_file(world.out / "detections.geojson"),
        "parquet": gpd.read_parquet(world.out / "detections.parquet"),
    }
    assert frames["gpkg"].crs == frames["parquet"].crs == UTM33
    assert frames["geojson"].crs == "EPSG:4326"
    for frame in frames.values():
        assert sorted(frame.class_name) == ["boat", "boat", "raft"]
        placed = frame.to_crs(UTM33).geometry.bounds.to_numpy()
        x, y = frame[["x_min", "x_max"]].to_numpy(), frame[["y_max", "y_min"]].to_numpy()
        expected = np.stack([500_000 + 2 * x[:, 0], 5_000_000 - 2 * y[:, 0], 500_000 + 2 * x[:, 1]], 1)
        assert np.allclose(placed[:, :3], expected, atol=0.01)


def test_coco_results_load(world: World) -> None:
    world.search()
    gold = COCO(str(world.out / "detections.coco_images.json"))
    run = gold.loadRes(str(world.out / "detections.coco.json"))
    files = {i["id"]: i["file_name"] for i in gold.dataset["images"]}
    names = {c["id"]: c["name"] for c in gold.dataset["categories"]}
    rows = []
    for note in run.dataset["annotations"]:
        x, y, w, h = note["bbox"]
        rows.append((names[note["category_id"]], files[note["image_id"]], (x, y, x + w, y + h)))
    assert sorted(rows) == world.truth


def test_the_challenges_seven_columns(world: World) -> None:
    world.search("output=challenge")
    table = pd.read_csv(world.out / "detections.csv", header=None)
    assert table.shape == (4, 7)
    rows = zip(table[4], table[5], table[[0, 1, 2, 3]].to_numpy().tolist(), strict=True)
    assert sorted((c, f, tuple(b)) for c, f, b in rows) == world.truth
    assert table[6].is_monotonic_decreasing


def test_outputs_can_be_switched_off(world: World) -> None:
    world.search("output.vector=[]", "output.coco=false")
    assert [p.name for p in world.out.iterdir()] == ["detections.csv"]


def test_scenes_without_a_place_on_the_map_have_no_map_files(world: World) -> None:
    result = world.search(f"scenes={world.scenes / 'port.tif'}")
    assert {p.suffix for p in result.files} == {".csv", ".json"}


def test_scenes_that_share_a_stem_have_an_overlay_each(world: World) -> None:
    write_scene(world.scenes / "port.tiff", ground(100, 100))
    result = world.search("output.overlays=20")
    pictures = [p for p in result.files if p.suffix == ".png"]
    assert len(set(pictures)) == 3


def truth_of(world: World) -> list[str]:
    """Writes the truth beside the folder of scenes; the setting that names it."""
    for file in ("port", "town"):
        label(world.folder / f"{file}.json", [(c, b) for c, f, b in world.truth if f == f"{file}.tif"])
    return [f"truth=[{world.folder / 'port.json'},{world.folder / 'town.json'}]"]


def test_against_truth(world: World) -> None:
    truth = truth_of(world)
    # A class that was not searched for is nobody's miss, one that is not there is.
    label(
        world.folder / "port.json",
        [("boat", world.truth[0][2]), ("boat", (200, 200, 240, 240)), ("kite", (10, 10, 30, 30))],
    )
    result = world.search(*truth, "output.page=true")
    assert result.evaluation is not None
    table = pd.read_csv(world.out / "evaluation.csv", index_col="class_name")
    assert list(table.index) == ["boat", "raft", "mean"]
    assert table.objects.tolist() == [4, 1, 5]
    assert table.recall["boat"] == pytest.approx(0.75)
    assert table.precision["boat"] == 1
    assert table.ap50["raft"] == 1
    assert table.ap["raft"] == 1, "a box that is not exact loses AP at IoU 0.95"
    assert table.calibration_error["boat"] < 0.01, "scores of 1 that are all right"
    assert {p.name for p in result.files} >= {
        "precision_recall.png", "reliability.png", "verdict_boat.png", "verdict_raft.png",
    }  # fmt: skip
    page = (world.out / "report.html").read_text()
    for caption in ("precision recall", "reliability", "verdict boat", "verdict raft"):
        assert f'alt="{caption}"' in page


def test_chips_are_called_by_their_rows_in_detections_csv(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Verdict] = {}
    plain = results.verdict_sheets

    def watched(judged: dict[str, Verdict], *args: Any) -> Any:  # noqa: ANN401
        seen.update(judged)
        return plain(judged, *args)

    monkeypatch.setattr(results, "verdict_sheets", watched)
    truth = truth_of(world)
    # Fewer objects than are found, so that some are false.
    label(world.folder / "port.json", [("boat", world.truth[0][2]), ("raft", (200, 200, 240, 240))])
    world.search(*truth)
    written = pd.read_csv(world.out / "detections.csv")
    rows = {kind: pd.concat([getattr(v, kind) for v in seen.values()]) for kind in ("found", "false")}
    for table in rows.values():
        named = written.iloc[table.row.astype(int)]
        np.testing.assert_allclose(named[["x_min", "y_max", "score"]], table[["x_min", "y_max", "score"]], atol=0.01)
    assert sorted(pd.concat(rows.values()).row) == list(range(len(written)))


def test_verdicts_can_be_switched_off(world: World) -> None:
    result = world.search(*truth_of(world), "output.verdicts=0", "output.page=true")
    assert not [p for p in result.files if p.name.startswith("verdict")]
    assert (world.out / "reliability.png").is_file()


def test_pictures_take_their_colours_from_the_names_of_the_bands(
    world: World, save_model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Sequence[int]] = []

    def watched(results: Results, folder: Path, **options: Any) -> list[Path]:  # noqa: ANN401
        shown.append(results.rgb)
        return write_results(results, folder, **options)

    monkeypatch.setattr(outcome, "write_results", watched)
    for bands in (("R", "G", "B", "NIR"), ("B", "G", "R", "NIR")):
        save_model(bands=bands)
        world.search()
    assert shown == [(0, 1, 2), (2, 1, 0)]


def test_truth_without_a_single_label(world: World) -> None:
    label(world.folder / "port.json", [("kite", (10, 10, 30, 30))])
    result = world.search(f"scenes={world.scenes / 'port.tif'}", f"truth={world.folder / 'port.json'}")
    assert result.evaluation is not None
    assert (world.out / "evaluation.csv").is_file()


def test_nothing_found_is_a_result_too(world: World) -> None:
    write_scene(world.folder / "empty" / "sea.tif", ground(200, 200), crs=UTM33, transform=NORTH_UP)
    result = world.search(f"scenes={world.folder / 'empty'}", "output.vector=[gpkg,geojson,parquet]")
    assert result.detections.empty
    assert pd.read_csv(world.out / "detections.csv").columns.tolist() == SEVEN + MAP
    assert len(gpd.read_file(world.out / "detections.gpkg")) == 0
    assert json.loads((world.out / "detections.coco.json").read_text()) == []


@pytest.mark.parametrize("damage", ["no raster", "cut short", "few bands"])
def test_a_scene_that_cannot_be_read_is_reported_and_the_others_are_searched(world: World, damage: str) -> None:
    bad = world.scenes / "bad.tif"
    if damage == "no raster":
        bad.write_bytes(b"this is no raster")
    elif damage == "few bands":
        write_scene(bad, ground(100, 100)[:3])
    else:
        write_scene(bad, ground(300, 300), compress="deflate", tiled=True, blockxsize=64, blockysize=64)
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 3 // 4])
    result = world.search()
    assert list(result.failed) == [str(bad)]
    assert "\n" not in result.failed[str(bad)]
    assert found(result) == world.truth


def test_all_scenes_unreadable_is_an_error(world: World) -> None:
    (world.folder / "bad.tif").write_bytes(b"this is no raster")
    with pytest.raises(InputError, match=r"bad\.tif"):
        world.search(f"scenes={world.folder / 'bad.tif'}")


def test_an_area_of_interest(world: World) -> None:
    result = world.search("aoi=[52,26,104,260]")
    assert found(result) == [t for t in world.truth if t[2][:2] == (58, 32)]


def test_bright_scenes_are_told_and_remedied(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Three times as bright, and with its own statistics the same again."""
    for name in ("scenes/town.tif", "shown.tif"):
        with rasterio.open(world.folder / name) as source:
            pixels = source.read()
        if name.startswith("scenes"):
            write_scene(world.folder / "bright" / "town.tif", pixels * 3)
    own = f"exemplars.boxes=[[{world.scenes / 'town.tif'},58,32,98,72,boat]]"
    bright = f"scenes={world.folder / 'bright'}"
    expected = [t for t in world.truth if t[:2] == ("boat", "town.tif")]
    with caplog.at_level(logging.WARNING):
        result = world.search(bright, exemplars=own)
    assert found(result) != expected
    (said,) = [r.getMessage() for r in caplog.records if "radiometry=per_scene" in r.getMessage()]
    assert "town.tif" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert found(world.search(bright, "radiometry=per_scene", exemplars=own)) == expected
        assert found(world.search(exemplars=own)) == [t for t in world.truth if t[0] == "boat"]
    assert "per_scene" not in caplog.text


def test_thresholds_by_class_and_from_the_checkpoint(world: World, save_model: Callable[..., str]) -> None:
    """At 0 every window is a candidate; 1 would not do, for a copy's cosine may be 1 after rounding."""
    rafts = [t for t in world.truth if t[0] == "raft"]

    def checked(threshold: str) -> None:
        rows = found(world.search(f"search.threshold={threshold}"))
        assert [r for r in rows if r[0] == "raft"] == rafts
        assert len(rows) > len(world.truth)

    checked("{boat:0.0,raft:0.9}")
    save_model(thresholds={"boat": 0.0, "raft": 0.9})
    checked("per_class")


def test_the_checkpoints_own_classes(world: World, save_model: Callable[..., str]) -> None:
    with SceneReader(open_scene(world.folder / "shown.tif", [1, 2, 3, 4])) as reader:
        chip, _ = cut_chip(reader, (30, 30, 70, 70), ChipSpec(), RADIOMETRY)
    prototype = Correlation()(RADIOMETRY.normalise(chip)[None])[0]
    save_model(prototypes={"boat": prototype}, extents={"boat": (40.0, 40.0)})
    result = world.search(exemplars="exemplars.boxes=null")
    assert found(result) == [t for t in world.truth if t[0] == "boat"]


def test_missing_exemplars_are_told_before_weights_are_looked_for(world: World) -> None:
    settings = ["ckpt_path=null", "model.weights=gone.pth"]
    with pytest.raises(InputError, match="no such folder") as error:
        world.search(*settings, exemplars=f"exemplars.chips={world.folder / 'none'}")
    assert str(world.folder / "none") in str(error.value)
    # What hydra makes of the sentence, which the command line tells as it was.
    with pytest.raises(InstantiationException, match=r"gone\.pth"):
        world.search(*settings)


def test_exemplars_from_labelled_scenes_and_from_chips(world: World) -> None:
    label(world.folder / "shown.json", [("boat", (30, 30, 70, 70)), ("raft", (130, 130, 210, 210))])
    assert found(world.search(exemplars=f"exemplars.scenes={world.folder / 'shown.tif'}")) == world.truth
    for name, what in (("boat", BOAT), ("raft", RAFT)):
        side = what.shape[1] * 13 // 10
        chip = ground(side, side)
        plant(chip, what, what.shape[1] * 3 // 20, what.shape[1] * 3 // 20)
        write_scene(world.folder / "chips" / name / "a.tif", chip)
    assert found(world.search(exemplars=f"exemplars.chips={world.folder / 'chips'}")) == world.truth


def test_bands_swapped_in_the_scenes_alone_are_no_match(world: World) -> None:
    with rasterio.open(world.scenes / "town.tif") as source:
        pixels = source.read([4, 2, 1, 3])
    write_scene(world.folder / "other" / "town.tif", pixels)
    other = f"scenes={world.folder / 'other'}"
    assert found(world.search(other)) == []
    renamed = world.search(other, "bands=[3,2,4,1]", "exemplars.bands=[1,2,3,4]")
    assert found(renamed) == [t for t in world.truth if t[1] == "town.tif"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (["bands=[3,2,1]"], "band"),
        (["bands=[1,2,3,9]"], "band"),
        (["ckpt_path={0}/none.ckpt"], "none.ckpt"),
        (["ckpt_path={0}/shown.tif"], "shown.tif"),
        (["scenes=null"], "scenes"),
        (["scenes={0}/none"], "none"),
        (["radiometry=mine"], "radiometry"),
        (["search.threshold=2"], "between 0 and 1"),
        (["search.threshold=high"], "threshold"),
        (["search.threshold={{boat: high}}"], "threshold"),
        (["search.threshold={{kite: 0.5}}"], "names 'kite'"),
        (["search.nms_iou=2"], "nms_iou"),
        (["search.stride=0"], "stride"),
        (["search.batch_size=0"], "batch_size"),
        (["search.min_valid=2"], "min_valid"),
        (["search.scales=[]"], "scales"),
        (["search.device=toaster"], "toaster"),
        (["search.precision=int4"], "int4"),
        (["output.vector=[dxf]"], "dxf"),
        (["output.verdicts=-1"], "output.verdicts"),
        (["truth={0}/none.json"], "none.json: no such label file or folder; check truth."),
        (["truth={0}/scenes/unnamed.geojson"], "set exemplars.class_field"),
        (["exemplars.boxes=null"], "exemplars"),
        (["aoi=[5000,5000,6000,6000]"], "area of interest"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(world: World, settings: list[str], word: str) -> None:
    # Labels without a class.
    shape = gpd.GeoSeries.from_wkt(["POINT (500020 4999980)"], crs=UTM33).buffer(9)
    gpd.GeoDataFrame({"kind": [1]}, geometry=shape).to_file(world.scenes / "unnamed.geojson")
    with pytest.raises(InputError) as error:
        world.search(*(s.format(world.folder) for s in settings))
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_the_door(world: World) -> None:
    """A real network in a real checkpoint; the exit status says that a scene was left out."""
    torch.manual_seed(0)
    spec = EmbedderSpec(("B", "G", "R", "NIR"), backbone="resnet18", hidden_dim=16, embedding_dim=16)
    network = Embedder(spec)
    ckpt = write_checkpoint(world.folder / "real.ckpt", spec=spec, state=network.state_dict())
    (world.scenes / "bad.tif").write_bytes(b"this is no raster")
    command = [
        sys.executable, str(ROOT / "search.py"), f"ckpt_path={ckpt}", f"scenes={world.scenes}",
        f"exemplars.boxes={world.boxes}", f"paths.output_dir={world.out}", f"hydra.run.dir={world.folder / 'run'}",
        "search/method=window", "search.method.calibration=training", "search.precision=fp32", "search.device=cpu",
        "search.threshold=0.9",
        "output.overlays=0", "output.page=false", "output.vector=[]",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=world.folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "bad.tif" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    table = pd.read_csv(world.out / "detections.csv")
    for name, file, box in world.truth:
        same = table[(table.class_name == name) & (table.filename == file)]
        sure = same[same.score > same.score.max() - 1e-4][SEVEN[:4]].to_numpy()
        assert any(np.allclose(row, box, atol=0.01) for row in sure), (name, file)


# A child takes over its parent's ru_maxrss, and pytest's may be large by now: Linux knows the child's own peak.
MEASURED = """
import pathlib, sys
from hydra import compose, initialize_config_dir
from siamese_sat.model import checkpoint
from siamese_sat.searching import search
from tests.search.conftest import Correlation
checkpoint.Embedder = Correlation
with initialize_config_dir(sys.argv[1], version_base="1.3"):
    result = search(compose("search", sys.argv[2:]))
assert not result.failed, result.failed
status = pathlib.Path("/proc/self/status").read_text()
print(len(result.detections), status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("width", "height", "side", "options"),
    [
        (20_000, 20_000, 40, {"tiled": True, "blockxsize": 512, "blockysize": 512, "nodata": 0}),
        (20_000, 20_000, 10, {"tiled": True, "blockxsize": 512, "blockysize": 512, "nodata": 0}),
        (20_000, 3_000, 40, {"nodata": 0}),
        (20_000, 3_000, 40, {"compress": "deflate"}),
    ],
    ids=["tiled", "tiled, small things", "striped", "striped, compressed, all valid"],
)
def test_a_large_scene_stays_under_2_gb(
    world: World, width: int, height: int, side: int, options: dict[str, object]
) -> None:
    what = thing(1, side, side)
    path = world.folder / "large.tif"
    profile = {"driver": "GTiff", "count": 4, "dtype": "uint16", "width": width, "height": height, "sparse_ok": True}
    spot = ground(112, 112)
    box = plant(spot, what, 58, 58)  # on the grid of windows of 52
    places = [(x, y) for y in range(520, height - 112, 1560) for x in range(520, width - 112, 1560)]
    with rasterio.open(path, "w", interleave="pixel", **profile, **options) as target:
        for x, y in places:
            target.write(spot, window=Window(x, y, 112, 112))
    x, y = places[-1]
    corner = (x + box[0], y + box[1], x + box[2], y + box[3])
    settings = [
        f"ckpt_path={world.ckpt}", f"scenes={path}", f"paths.output_dir={world.out}", "search/method=window",
        "search.method.calibration=training",
        f"exemplars.boxes=[[{path},{','.join(map(str, corner))},boat]]", "search.device=cpu", "search.precision=fp32",
        "search.threshold=0.5", "search.stride=32",
    ]  # fmt: skip
    command = [sys.executable, "-c", MEASURED, str(ROOT / "conf"), *settings]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    count, kilobytes = map(int, done.stdout.split()[-2:])
    assert side != 40 or count >= len(places)
    assert kilobytes * 1024 < 2e9, f"{kilobytes / 2**20:.2f} GB"


def test_what_a_file_has_no_weights_for_is_the_same_in_every_search(world: World) -> None:
    """The head is in none: random, it decides what windows resemble."""
    torch.manual_seed(5)
    save_file(
        {k: v for k, v in Backbone("resnet18").state_dict().items() if "layer4" not in k},
        world.folder / "w.safetensors",
    )
    settings = [
        "ckpt_path=null",
        "model=resnet18",
        f"model.weights={world.folder / 'w.safetensors'}",
        "search.threshold=0",
    ]
    rows = []
    for seed in range(2):
        torch.manual_seed(seed)
        rows.append(world.search(*settings).detections)
    assert len(rows[0]) > 10
    assert rows[0].equals(rows[1])


def test_files_of_an_earlier_search_are_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    label(world.folder / "port.json", [])
    world.search(f"truth={world.folder / 'port.json'}")
    assert "of an earlier search" not in caplog.text
    world.search()
    assert "evaluation.csv, its plots and its verdicts are of an earlier search" in caplog.text


def test_a_class_without_a_threshold_of_its_own_is_told(
    world: World, save_model: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    save_model(thresholds={"boat": 0.9})
    world.search("search.threshold=per_class")
    assert "there is none of raft, 0.3 is taken" in caplog.text


def test_with_exemplars_scenes_say_what_scores_mean_but_not_for_thresholds_of_the_training(
    world: World, save_model: Callable[..., str]
) -> None:
    save_model(thresholds={"boat": 0.05, "raft": 0.05})
    auto, scenes, training = (f"search.method.calibration={which}" for which in ("auto", "scenes", "training"))
    of_auto, of_scenes = (world.search("search.threshold=0.05", which) for which in (auto, scenes))
    of_training, per_class = (
        world.search(f"search.threshold={threshold}", which)
        for threshold, which in ((0.05, training), ("per_class", auto))
    )
    assert of_auto.detections.equals(of_scenes.detections)
    assert of_training.detections.equals(per_class.detections)
    assert of_auto.detections.score.tolist() != of_training.detections.score.tolist()
    assert set(world.truth) <= set(found(of_auto))
