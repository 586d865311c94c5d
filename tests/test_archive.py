from __future__ import annotations

import json
import logging
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from hydra import compose, initialize_config_dir

from siamese_sat.errors import InputError
from siamese_sat.model.embedder import EmbedderSpec
from siamese_sat.outcome import SearchResult
from siamese_sat.search.index.store import Store
from siamese_sat.searching import search
from tests.conftest import NORTH_UP, UTM33, write_scene
from tests.search.conftest import BANDS, Correlation, ground, plant, thing, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
BOAT, RAFT = thing(1, 40, 40), thing(2, 80, 80)  # windows of 52 and 104, places 26 and 52 apart
SPEC = EmbedderSpec(BANDS, embedding_dim=1024)  # what `Correlation` gives


class Same(Correlation):
    """The same weights every time, others for another spec."""

    def __init__(self, spec: EmbedderSpec | None = None) -> None:
        super().__init__(spec)
        with torch.no_grad():
            for weight in self.parameters():
                weight.fill_(float(spec.hidden_dim) if spec is not None else 0.0)


@pytest.fixture(autouse=True)
def correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    from siamese_sat.model import checkpoint

    monkeypatch.setattr(checkpoint, "Embedder", Same)


class Archive:
    """Two scenes with three boats and a raft, an exemplar scene, a checkpoint, and commands with an index of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, folder / "index"
        port, town = ground(260, 312), ground(260, 312)
        self.truth = [("boat", "port_20200101.tif", plant(port, BOAT, 6 + 26 * 2, 6 + 26))]
        self.truth += [
            ("boat", "town_20240101.tif", plant(town, BOAT, 6 + 26 * x, 6 + 26 * y)) for x, y in ((2, 1), (8, 0))
        ]
        self.truth += [("raft", "town_20240101.tif", plant(town, RAFT, 12 + 52 * 4, 12 + 52 * 3))]
        write_scene(folder / "scenes/port_20200101.tif", port)
        write_scene(folder / "scenes/town_20240101.tif", town, crs=UTM33, transform=NORTH_UP)
        shown = ground(260, 312)
        self.rows = [[*plant(shown, BOAT, 30, 30), "boat"], [*plant(shown, RAFT, 130, 130), "raft"]]
        self.shown = write_scene(folder / "shown.tif", shown)
        self.ckpt = write_checkpoint(folder / "model.ckpt", spec=SPEC)

    def boxes(self, *rows: list[object]) -> str:
        return "[" + ",".join(f"[{self.shown},{','.join(map(str, row))}]" for row in rows or self.rows) + "]"

    def run(self, *settings: str, ask: bool = True) -> SearchResult:
        overrides = [
            f"index={self.uri}", f"ckpt_path={self.ckpt}", f"paths.output_dir={self.folder / 'out'}",
            "search.device=cpu", "search.precision=fp32", "output.overlays=0", "output.page=false",
            "search/method=window", "query.verify=false", "search.threshold=0.0",
            *([f"exemplars.boxes={self.boxes()}"] if ask else []), *settings,
        ]  # fmt: skip
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return search(compose("search", overrides))

    def index(self, *settings: str) -> SearchResult:
        return self.run(
            f"scenes={self.folder / 'scenes'}", "indexing.windows=[52,104]", "mode=index", *settings, ask=False
        )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def found(result: SearchResult, boats: int = 3, rafts: int = 1) -> list[tuple[str, str, tuple[float, ...]]]:
    """So many of each class, the best."""
    rows = result.detections
    rows = rows[rows.groupby("class_name").cumcount() < rows.class_name.map({"boat": boats, "raft": rafts})]
    boxes = rows[["x_min", "y_min", "x_max", "y_max"]].round(4).to_numpy().tolist()
    return sorted((c, f, tuple(b)) for c, f, b in zip(rows.class_name, rows.filename, boxes, strict=True))


def test_what_was_indexed_is_found_without_the_scenes(archive: Archive) -> None:
    assert not archive.index().failed
    for path in (archive.folder / "scenes").iterdir():
        path.unlink()
    result = archive.run("output.overlays=5", "output.vector=[geojson]")
    assert found(result) == sorted(archive.truth)
    table = pd.read_csv(archive.folder / "out/detections.csv")
    assert table.crs.dropna().unique().tolist() == ["EPSG:32633"]
    assert table.score.between(0, 1).all()


def test_scenes_and_question_in_one_command_and_only_these_scenes_are_asked(archive: Archive) -> None:
    town = f"scenes={archive.folder / 'scenes/town_20240101.tif'}"
    assert archive.run(town, "indexing.windows=[52,104]").detections.filename.unique().tolist() == ["town_20240101.tif"]
    port = f"scenes={archive.folder / 'scenes/port_20200101.tif'}"
    assert found(archive.run(port), boats=1, rafts=0) == archive.truth[:1]
    assert found(archive.run()) == sorted(archive.truth)


def test_nothing_asked_is_told(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    scenes = f"scenes={archive.folder / 'scenes'}"
    result = archive.run(scenes, "indexing.windows=[52,104]", ask=False)
    assert "Nothing is asked of the index" in caplog.text
    assert result.detections.empty
    with pytest.raises(InputError, match="nothing is asked of it; give exemplars"):
        archive.run(ask=False)
    assert found(archive.run()) == sorted(archive.truth), "the scenes are in it"


def test_another_model_or_geometry_is_refused(archive: Archive) -> None:
    archive.index()
    with pytest.raises(InputError, match=r"other windows.*leave indexing.windows null"):
        archive.run("indexing.windows=[64]")
    with pytest.raises(InputError, match="radiometry=model"):
        archive.run("radiometry=per_scene")
    with pytest.raises(InputError, match=r"bands=\[1,2,3,4\]"):
        archive.run("bands=[4,3,2,1]")
    other = write_checkpoint(archive.folder / "other.ckpt", spec=EmbedderSpec(BANDS, embedding_dim=1024, hidden_dim=7))
    with pytest.raises(InputError, match=r"give ckpt_path=.*model.ckpt, with which it was made"):
        archive.run(f"ckpt_path={other}")


def test_nothing_there_and_nothing_to_do(archive: Archive) -> None:
    with pytest.raises(InputError, match="nothing to index"):
        archive.run("mode=index")
    with pytest.raises(InputError, match="there is no index here"):
        archive.run()
    for mode in ("info", "remove", "export"):
        with pytest.raises(InputError, match="there is no index here"):
            archive.run(f"mode={mode}", "scenes=a.tif", "exchange=a.parquet")
    with pytest.raises(InputError, match="index=<folder"):
        archive.run("mode=info", "index=null")


def test_a_damaged_scene_is_reported_and_the_others_come_in(archive: Archive) -> None:
    (archive.folder / "scenes/bad.tif").write_bytes(b"II*\0 no raster")
    result = archive.index()
    assert [Path(p).name for p in result.failed] == ["bad.tif"]
    assert found(archive.run()) == sorted(archive.truth)


def test_info(archive: Archive) -> None:
    archive.index()
    archive.run("mode=info", ask=False)
    facts = json.loads((archive.folder / "out/index.json").read_text())
    assert facts["scenes"] == 2
    assert facts["windows"] == Store(str(archive.uri)).count() > 0
    assert facts["square_kilometres"] == pytest.approx(260 * 312 * 4 / 1e6, abs=1e-3)  # only one has a place
    assert facts["first_day"] == "2020-01-01"
    assert facts["bytes_per_window"] > 0
    assert archive.ckpt in facts["model"]
    west, south, east, north = facts["west_south_east_north"]
    assert 14.9 < west < east < 15.1
    assert 45 < south < north < 45.2
    scenes = pd.read_csv(archive.folder / "out/scenes.csv")
    corners = scenes[["map_x_min", "map_y_min", "map_x_max", "map_y_max"]]
    assert corners.loc[0].isna().all()
    assert corners.loc[1].tolist() == pytest.approx([west, south, east, north], abs=1e-4)
    assert [Path(p).name for p in scenes.path] == ["port_20200101.tif", "town_20240101.tif"]
    assert scenes.windows.sum() == facts["windows"]
    assert scenes.date[0] == "2020-01-01"


def test_removing(archive: Archive) -> None:
    archive.index()
    town = archive.folder / "scenes/town_20240101.tif"
    town.unlink()  # it may be gone
    archive.run("mode=remove", f"scenes={town}", ask=False)
    assert found(archive.run(), boats=1, rafts=0) == archive.truth[:1]
    with pytest.raises(InputError, match=r"none of these scenes.*such as .*port_20200101.tif"):
        archive.run("mode=remove", f"scenes={town}", ask=False)


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        (["query.scenes=port*"], {"port_20200101.tif"}),
        (["query.dates=[2023-01-01,null]"], {"town_20240101.tif"}),
        (["query.dates=[null,2020-01-01]"], {"port_20200101.tif"}),
        (["query.area=[14.9,45,15.1,45.3]"], {"town_20240101.tif"}),
        (["query.area=[500000,4999480,500624,5000000]", "query.area_crs=EPSG:32633"], {"town_20240101.tif"}),
    ],
)
def test_filters(archive: Archive, settings: list[str], files: set[str]) -> None:
    archive.index()
    assert set(archive.run(*settings).detections.filename) == files


def test_a_polygon_and_what_lies_beside_it(archive: Archive) -> None:
    archive.index()
    # Two triangles: their box holds all of town, they only the boats in its upper left.
    left = shapely.Polygon([(500_000, 5_000_000), (500_280, 5_000_000), (500_000, 4_999_700)])
    right = shapely.box(500_610, 4_999_480, 500_624, 4_999_490)
    gpd.GeoDataFrame(geometry=[left, right], crs=UTM33).to_file(archive.folder / "area.gpkg")
    result = archive.run(f"query.area={archive.folder / 'area.gpkg'}")
    assert found(result, boats=1, rafts=0) == archive.truth[1:2]
    centres = (result.detections.x_min + result.detections.x_max) / 2, result.detections.y_min
    assert len(result.detections) and (centres[0] < 140).all() and (centres[1] < 150).all()


def test_filters_that_leave_nothing_or_make_no_sense(archive: Archive) -> None:
    archive.index()
    for setting, words in {
        "query.scenes=none*": "is left",
        "query.dates=[1999-01-01,2000-01-01]": "is left",
        "query.dates=[yesterday,null]": "YYYY-MM-DD",
        "query.area=nowhere.gpkg": "no such file",
        "query.area=[1,2,3]": "x_min",
        "aoi=[0,0,10,10]": "query.area",
        "query.scales=[999]": "the index has windows of 52, 104 pixels",
    }.items():
        with pytest.raises(InputError, match=words):
            archive.run(setting)


def test_ranking_gives_the_best_whatever_they_score(archive: Archive) -> None:
    archive.index()
    result = archive.run(
        "output=ranking", "output.ranking=5", "output.overlays=0", "output.page=false", "search.threshold=1.0"
    )
    assert result.detections.class_name.value_counts().to_dict() == {"boat": 5, "raft": 5}
    assert (archive.folder / "out/ranking.png") in result.files
    best = result.detections.groupby("class_name").head(1)
    assert set(best.class_name) == {"boat", "raft"}
    assert set(found(result)) >= set(archive.truth)


def test_ranking_without_an_index(archive: Archive) -> None:
    result = archive.run("index=null", f"scenes={archive.folder / 'scenes'}", "output.ranking=2")
    assert result.detections.class_name.value_counts().to_dict() == {"boat": 2, "raft": 2}
    assert (archive.folder / "out/ranking.png").is_file()


def test_rows_of_an_earlier_search_as_exemplars(archive: Archive) -> None:
    archive.index()
    archive.run()
    table = pd.read_csv(archive.folder / "out/detections.csv")
    kept = archive.folder / "first.csv"
    table.to_csv(kept, index=False)
    row = int(np.flatnonzero(table.class_name == "raft")[0])
    again = archive.run(f"feedback.detections={kept}", f"feedback.positives=[{row}]", ask=False)
    assert set(again.detections.class_name) == {"raft"}
    assert found(again) == [t for t in archive.truth if t[0] == "raft"]
    with pytest.raises(InputError, match="names row 99"):
        archive.run(f"feedback.detections={kept}", "feedback.positives=[99]")
    with pytest.raises(InputError, match="no such file"):
        archive.run("feedback.detections=gone.csv")
    with pytest.raises(InputError, match=r"no detections.csv"):
        archive.run(f"feedback.detections={archive.shown}")
    (archive.folder / "scenes/town_20240101.tif").unlink()
    with pytest.raises(InputError, match=r"first.csv: .*town_20240101.tif is gone.*query.places"):
        archive.run(f"feedback.detections={kept}", f"feedback.positives=[{row}]", ask=False)


def test_rows_serve_without_an_index_too(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    own = "search.method.calibration=training"  # scores are cosines
    direct = ["index=null", f"scenes={archive.folder / 'scenes'}", "search.threshold=0.9", own]
    first = archive.run(*direct).detections
    kept = archive.folder / "first.csv"
    first.to_csv(kept, index=False)
    boat = int(np.flatnonzero(first.class_name == "boat")[0])
    raft = int(np.flatnonzero(first.class_name == "raft")[0])
    rows = f"feedback.detections={kept}"
    again = archive.run(*direct, rows, f"feedback.positives=[{boat}]", ask=False)
    assert found(again) == [t for t in archive.truth if t[0] == "boat"]
    # A boat that is shown as what is not meant goes; others resemble what is meant as much, and stay.
    with caplog.at_level(logging.INFO, logger="siamese_sat.shown"):
        lowered = archive.run(*direct, rows, f"feedback.negatives=[{boat}]", "search.threshold=0.4").detections
    assert [r.message for r in caplog.records if r.name == "siamese_sat.shown"] == [
        "Exemplars: boat 1, raft 1.", "Negatives: boat 1.",
    ]  # fmt: skip
    corner = ["filename", "x_min", "y_min"]
    left = set(lowered[lowered.class_name == "boat"][corner].itertuples(index=False, name=None))
    before = set(first[first.class_name == "boat"][corner].itertuples(index=False, name=None))
    assert left == before - {tuple(first.loc[boat, corner])}
    assert len(left) > 0
    assert lowered.score[lowered.class_name == "raft"].max() == pytest.approx(first.score[raft], abs=1e-6)
    with pytest.raises(InputError, match="not among the scenes"):
        archive.run("index=null", f"scenes={archive.shown}", rows, f"feedback.positives=[{boat}]")


def test_what_is_unlike_scores_less(archive: Archive) -> None:
    archive.index()
    # Half a boat: some of what makes a boat is in it.
    port = ground(260, 312)
    half = BOAT.copy()
    half[:, :, 20:] = thing(7, 20, 40)
    plant(port, BOAT, 6 + 26 * 2, 6 + 26)
    box = plant(port, half, 6 + 26 * 6, 6 + 26 * 4)
    write_scene(archive.folder / "scenes/port_20200101.tif", port)
    archive.index()
    boat = f"exemplars.boxes={archive.boxes(archive.rows[0])}"
    other = f"[[{archive.folder / 'scenes/port_20200101.tif'},{','.join(map(str, box))},not this]]"

    def scores(*settings: str) -> tuple[float, float]:
        found = archive.run("query.scenes=port*", boat, *settings, ask=False).detections
        at = {(x, y): score for x, y, score in found[["x_min", "y_min", "score"]].round(3).to_numpy().tolist()}
        return at[58, 32], at[6 + 26 * 6, 6 + 26 * 4]

    (boat_before, half_before), (boat_after, half_after) = scores(), scores(f"negatives.boxes={other}")
    assert half_after < half_before
    assert half_after / boat_after < half_before / boat_before


def test_handed_on_and_asked_elsewhere(archive: Archive) -> None:
    archive.index()
    file = archive.folder / "export.parquet"
    archive.run("mode=export", f"exchange={file}", ask=False)
    frame = gpd.read_parquet(file)
    assert {"id", "geometry", "embedding"} <= set(frame.columns)
    assert frame.crs == "EPSG:4326"
    assert frame.id.is_unique
    town = frame[frame.path.str.contains("town")]
    assert len(town) and town.geometry.notna().all()
    assert np.linalg.norm(np.stack(frame.embedding), axis=1) == pytest.approx(1, abs=1e-2)
    other = archive.folder / "other"
    archive.run("mode=import", f"index={other}", f"exchange={file}", ask=False)
    assert found(archive.run(f"index={other}")) == found(archive.run()) == sorted(archive.truth)
    with pytest.raises(InputError, match="an index already"):
        archive.run("mode=import", f"exchange={file}", ask=False)
    with pytest.raises(InputError, match="no such file"):
        archive.run("mode=import", f"index={archive.folder / 'third'}", "exchange=gone.parquet", ask=False)


def test_missing_exemplars_are_told_before_anything_is_indexed(archive: Archive) -> None:
    scenes = f"scenes={archive.folder / 'scenes'}"
    for shown in (
        "exemplars.chips={0}/none",
        "exemplars.scenes={0}/none.tif",
        "exemplars.boxes=[[{0}/none,1,1,9,9,a]]",
        "exemplars.labels={0}/none.json",
        "negatives.chips={0}/none",
        "feedback.detections={0}/none.csv",
    ):
        with pytest.raises(InputError, match="/none") as error:
            archive.run(scenes, shown.format(archive.folder), ask=False)
        if "chips" in shown:
            assert shown.split("=")[0] in str(error.value)
    assert not archive.uri.exists()


def test_places_on_the_map_are_asked_without_scenes_or_model(archive: Archive) -> None:
    archive.index()
    for path in (archive.folder / "scenes").iterdir():
        path.unlink()
    # The middle of the second boat of town, in metres.
    x, y = 500_000 + 2 * 234, 5_000_000 - 2 * 26
    settings = ["ckpt_path=null", "model.weights=gone.pth", "query.area_crs=EPSG:32633"]
    result = archive.run(f"query.places={{boat: [[{x},{y}]]}}", "query.scales=[52]", *settings, ask=False)
    centres = (result.detections[["x_min", "y_min"]].to_numpy() + result.detections[["x_max", "y_max"]].to_numpy()) / 2
    names = result.detections.filename[:3].tolist()
    assert sorted(zip(names, centres[:3].round(3).tolist(), strict=True)) == [
        ("port_20200101.tif", [78, 52]), ("town_20240101.tif", [78, 52]), ("town_20240101.tif", [234, 26]),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"no window of the index \(52 pixels\) lies at"):
        archive.run("query.places={boat: [[0,0]]}", *settings, ask=False)
    with pytest.raises(InputError, match=r"is not \[x, y\]"):
        archive.run("query.places={boat: [5]}", *settings, ask=False)


def test_places_are_asked_of_an_index_that_the_same_command_makes(
    archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    (archive.folder / "scenes/bad.tif").write_bytes(b"no raster")
    x, y = 500_000 + 2 * 234, 5_000_000 - 2 * 26
    settings = [f"query.places={{boat: [[{x},{y}]]}}", "query.scales=[52]", "query.area_crs=EPSG:32633"]
    scenes = [f"scenes={archive.folder / 'scenes'}", "indexing.windows=[52]"]
    result = archive.run(*scenes, *settings, ask=False)
    assert len(result.detections) >= 3
    assert [Path(p).name for p in result.failed] == ["bad.tif"]
    assert "Nothing is asked" not in caplog.text
    assert archive.run(*scenes, *settings, "mode=index", ask=False).detections.empty, "that asks nothing"


def test_embeddings_made_elsewhere(archive: Archive) -> None:
    rng = np.random.default_rng(0)
    x, y = (v.ravel() for v in np.meshgrid(8 + np.arange(20) * 0.01, 47 + np.arange(20) * 0.01))
    vectors = rng.normal(size=(400, 12)).astype(np.float32)
    vectors[[7, 111, 222]] = rng.normal(size=12) + 0.1 * rng.normal(size=(3, 12))
    shapes = shapely.box(x, y, x + 0.01, y + 0.01)
    frame = gpd.GeoDataFrame({"id": np.arange(400), "embedding": list(vectors)}, geometry=shapes, crs="EPSG:4326")
    frame.to_parquet(archive.folder / "theirs.parquet")
    archive.run("mode=import", f"exchange={archive.folder / 'theirs.parquet'}", ask=False)
    with pytest.raises(InputError, match="made elsewhere"):
        archive.run()
    place = f"query.places={{thing: [[{x[111] + 0.005},{y[111] + 0.005}]]}}"
    result = archive.run(place, "output.vector=[geojson]", "output.ranking=3", ask=False)
    best = gpd.read_file(archive.folder / "out/detections.geojson")
    west, south, east, north = best.geometry.bounds.to_numpy().T
    centres = np.stack([(west + east) / 2, (south + north) / 2], axis=1).round(5)
    expected = [(round(float(x[i]) + 0.005, 5), round(float(y[i]) + 0.005, 5)) for i in (7, 111, 222)]
    assert sorted(map(tuple, centres.tolist())) == sorted(expected)
    assert len(result.detections) == 3
    for content, words in ((b"no parquet", "as Parquet"), (None, "columns embedding and geometry")):
        bad = archive.folder / "bad.parquet"
        bad.write_bytes(content) if content else pd.DataFrame({"a": [1]}).to_parquet(bad)
        with pytest.raises(InputError, match=words):
            archive.run("mode=import", f"index={archive.folder / 'new'}", f"exchange={bad}", ask=False)


def test_candidates_are_verified_on_their_pixels(archive: Archive) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 90, (3, 512, 640)).astype("uint8")
    thing = rng.integers(0, 255, (3, 12, 12)).repeat(4, 1).repeat(4, 2).astype("uint8")
    boxes = [plant(pixels, thing, x, y) for x, y in ((60, 70), (420, 300))]
    path = write_scene(archive.folder / "photo.tif", pixels)
    settings = [
        f"scenes={path}", "ckpt_path=null", "model=resnet18", "model.weights=null", "search/method=template",
        f"exemplars.boxes=[[{path},{','.join(map(str, boxes[0]))},thing]]", "search.threshold=0.0",
    ]  # fmt: skip
    direct = archive.run("index=null", *settings, ask=False).detections
    more = ["query.candidates=12", "indexing.windows=[64]", "exemplars.seed=0"]
    result = archive.run("query.verify=pixels", *more, *settings, ask=False)
    # Or on the cells that the index keeps, which it is asked for unless pixels are.
    kept = archive.run("query.verify=auto", *more, *settings, ask=False)
    for mine in (direct, result.detections, kept.detections):
        best = sorted(mine[["x_min", "y_min", "x_max", "y_max"]].to_numpy()[:2].tolist())
        assert np.abs(np.array(best) - np.array(sorted(boxes))).max() < 8
    # They are the same places with the same scores, but for what was cut off far away.
    assert result.detections.score[:2].to_numpy() == pytest.approx(direct.score[:2].to_numpy(), abs=0.05)
    assert len(result.detections) < len(direct)
    with pytest.raises(InputError, match="none of auto, cells, pixels and false"):
        archive.run("query.verify=often", *settings, ask=False)
    with pytest.raises(InputError, match=r"search/method=template; query\.verify=pixels"):
        archive.run("query.verify=cells", *settings, "search/method=window", ask=False)


def test_cells_go_with_an_export_and_serve_without_the_scenes(archive: Archive) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 90, (3, 512, 640)).astype("uint8")
    thing = rng.integers(0, 255, (3, 12, 12)).repeat(4, 1).repeat(4, 2).astype("uint8")
    boxes = [plant(pixels, thing, x, y) for x, y in ((60, 70), (420, 300))]
    path, shown = (write_scene(archive.folder / name, pixels) for name in ("photo.tif", "shown.tif"))
    settings = ["ckpt_path=null", "model=resnet18", "model.weights=null", "search/method=template"]
    asked = [f"exemplars.boxes=[[{shown},{','.join(map(str, boxes[0]))},thing]]", "query.verify=cells"]
    archive.run(f"scenes={path}", "mode=index", "indexing.windows=[64]", *settings, ask=False)
    Path(path).unlink()
    file, other = archive.folder / "export.parquet", f"index={archive.folder / 'other'}"
    archive.run("mode=export", f"exchange={file}", ask=False)
    archive.run("mode=import", other, f"exchange={file}", ask=False)
    first, second = (archive.run(*settings, *asked, *where, ask=False).detections for where in ([], [other]))
    best = sorted(first[["x_min", "y_min", "x_max", "y_max"]].to_numpy()[:2].tolist())
    assert np.abs(np.array(best) - np.array(sorted(boxes))).max() < 8
    pd.testing.assert_frame_equal(first, second)


def test_an_index_of_an_earlier_version_is_refused(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scene(archive.folder / "photo.tif", np.full((3, 200, 200), 7, "uint8"))
    settings = ["ckpt_path=null", "model=resnet18", "model.weights=null"]
    archive.run(f"scenes={path}", "mode=index", *settings, ask=False)
    about = Store.about

    def earlier(store: Store) -> tuple[dict[str, object], bytes]:
        known, tensors = about(store)
        return {k: v for k, v in known.items() if k != "cells"}, tensors

    monkeypatch.setattr(Store, "about", earlier)
    with pytest.raises(InputError, match="an earlier version made this index"):
        archive.run(*settings, f"exemplars.boxes=[[{path},10,10,60,60,thing]]", ask=False)
    archive.run("mode=info", ask=False)
