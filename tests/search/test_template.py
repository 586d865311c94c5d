from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.scene import PixelBox, Scene
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search import template as module
from siamese_sat.search.dense import feature_tiles
from siamese_sat.search.detect import Candidates, suppress
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar, ExemplarSource
from siamese_sat.search.score import ALONE, ORDINARY, ScoreCurve
from siamese_sat.search.template import TemplateSearch
from siamese_sat.searching import search
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY, tiny_embedder

ROOT = Path(__file__).resolve().parents[2]
Image = npt.NDArray[np.float64]
# Width, height, and its parts: left, top, right, bottom as shares of these, and the four bands' values.
Shape = tuple[int, int, list[tuple[tuple[float, float, float, float], tuple[int, int, int, int]]]]
BRIGHT = (0.0, 0.0, 1.0, 1.0)
BOAT: Shape = (
    40, 28,
    [(BRIGHT, (2600, 2400, 2200, 3000)), ((0, 0, 0.3, 1), (300, 300, 300, 500)),
     ((0.5, 0.55, 0.85, 0.9), (400, 900, 2500, 800))],
)  # fmt: skip
POOL: Shape = (
    36, 36,
    [(BRIGHT, (700, 1500, 2600, 5000)), ((0.4, 0, 1, 0.35), (2500, 2500, 2500, 500)),
     ((0.1, 0.6, 0.4, 0.9), (100, 100, 100, 6000))],
)  # fmt: skip
TRAIN: Shape = (
    60, 14,
    [(BRIGHT, (2600, 2600, 2400, 3000)), ((0, 0, 0.25, 1), (300, 300, 300, 500)),
     ((0.6, 0, 0.75, 1), (500, 500, 2000, 500))],
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small mostly wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texture(seed: int, height: int, width: int) -> Image:
    """``[4, height, width]`` of noise as coarse as five pixels."""
    noise = np.random.default_rng(seed).normal(0, 1, (4, height + 4, width + 4))
    smooth = sum(noise[:, i : i + height, j : j + width] for i in range(5) for j in range(5)) / 5
    scale = RADIOMETRY.scale
    mean, std = (np.array(v)[:, None, None] * scale for v in (RADIOMETRY.mean, RADIOMETRY.std))
    return np.asarray(mean + 0.4 * std * smooth)


def draw(pixels: Image, shape: Shape, cx: float, cy: float, scale: float = 1, degrees: float = 0) -> PixelBox:
    """Paints a shape round (cx, cy), turned clockwise, its edges shared between pixels; returns its box."""
    width, height, parts = shape
    rows, columns, fine = *pixels.shape[1:], 3
    dx = ((np.arange(columns * fine) + 0.5) / fine - cx)[None]
    dy = ((np.arange(rows * fine) + 0.5) / fine - cy)[:, None]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u, v = (c * dx + s * dy) / scale / width + 0.5, (c * dy - s * dx) / scale / height + 0.5
    for (left, top, right, bottom), colour in parts:
        inside = (u >= left) & (u < right) & (v >= top) & (v < bottom)
        share = inside.astype(float).reshape(rows, fine, columns, fine).mean(axis=(1, 3))
        pixels[:] = pixels * (1 - share) + np.array(colour)[:, None, None] * share
    half_w, half_h = scale * (width * abs(c) + height * abs(s)) / 2, scale * (width * abs(s) + height * abs(c)) / 2
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def save(path: Path, pixels: Image, **options: Any) -> Scene:  # noqa: ANN401 - whatever writing takes
    return make_scene(path, pixels.clip(1).round().astype("uint16"), **options)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(DeployedEmbedder(tiny_embedder().eval()), torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel(tiny_embedder().eval(), RADIOMETRY, ChipSpec(), (1, 2, 3, 4), (), None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Exemplar]]:
    """Three boats, two pools, two trains, none of them turned."""
    pixels, boxes = texture(1, 320, 320), []
    for name, shape, cx, cy in [
        ("boat", BOAT, 60.3, 60.7),
        ("boat", BOAT, 150, 200.5),
        ("boat", BOAT, 230.2, 90),
        ("pool", POOL, 240, 240),
        ("pool", POOL, 80.4, 260),
        ("train", TRAIN, 150, 40),
        ("train", TRAIN, 120, 130.5),
    ]:
        boxes.append((name, draw(pixels, shape, cx, cy)))
    scene = save(tmp_path_factory.mktemp("shown") / "shown.tif", pixels)
    return {c: [Exemplar(c, scene, b) for n, b in boxes if n == c] for c in ("boat", "pool", "train")}


class Searched:
    """One scene with planted things, searched."""

    def __init__(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        scene: Scene,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        self.scene, self.engine = scene, engine
        self.method = TemplateSearch(**{"box_scale": 1.0, "samples": 12, **settings})
        self.method.prepare(model, engine, exemplars, lambda scene: RADIOMETRY, [scene])

    def all(self, threshold: float = 0.0) -> Candidates:
        return Candidates.join(list(self.method.candidates(self.scene, dict.fromkeys(self.method.classes, threshold))))

    def best(self, count: int, threshold: float = 0.0) -> list[tuple[str, PixelBox, float]]:
        found = suppress(self.all(threshold), 0.1)
        rows = zip(found.classes[:count], found.boxes[:count].tolist(), found.scores[:count], strict=True)
        return [(self.method.classes[c], tuple(b), float(s)) for c, b, s in rows]


def error(found: PixelBox, truth: PixelBox) -> tuple[float, float]:
    """Distance of the centres along the worse axis in pixels; worse ratio of the sides."""
    f, t = np.array(found).reshape(2, 2), np.array(truth).reshape(2, 2)
    ratio = np.log((f[1] - f[0]) / (t[1] - t[0]))
    return float(np.abs(f.mean(0) - t.mean(0)).max()), float(np.exp(np.abs(ratio).max()))


@pytest.mark.parametrize("count", [1, 3])
def test_things_are_found_where_they_are_larger_and_turned_too(
    count: int, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    pixels = texture(2, 320, 320)
    planted = [
        (80.4, 90.2, 1, 0, 1.5),
        (200.7, 100.1, 1.5, 0, 2.5),  # a cell is 1.5 times as wide there
        (100, 240, 1, 90, 1.5),
        (240, 240, 1, 45, 1.5),
    ]
    boxes = [draw(pixels, BOAT, *p[:4]) for p in planted]
    # Between quarter turns nobody knows how far the corners are filled: as a rectangle's or as an ellipse's.
    ellipse = math.hypot(40, 28) / math.sqrt(2)
    slack = [1.0, 1.0, 1.0, (boxes[3][2] - boxes[3][0]) / ellipse]
    searched = Searched(model, engine, shown["boat"][:count], save(tmp_path / "a.tif", pixels))
    found = searched.best(5)
    assert all(s > 0.15 for _, _, s in found[:4])
    assert found[4][2] < 0.15, "nothing else is like a boat"
    for truth, (_, _, _, _, near), more in zip(boxes, planted, slack, strict=True):
        away, ratio = min(error(b, truth) for _, b, _ in found[:4])
        assert away < near
        assert ratio < 1.15 * more


def test_no_direction_is_preferred(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    """Half a cell is four pixels; the mean over many places between cells is not off by one."""
    pixels, rng = texture(3, 380, 380), np.random.default_rng(0)
    truth = []
    for i in range(16):
        cx, cy = 55 + 90 * (i % 4) + rng.uniform(-4, 4), 55 + 90 * (i // 4) + rng.uniform(-4, 4)
        truth.append(draw(pixels, BOAT, cx, cy, 1, 90 * (i % 4)))
    found = Searched(model, engine, shown["boat"], save(tmp_path / "a.tif", pixels), samples=8).best(16)
    off = []
    for box in truth:
        near = min((b for _, b, _ in found), key=lambda b: error(b, box)[0])
        assert error(near, box)[0] < 2.5
        off.append([(near[i] + near[i + 2] - box[i] - box[i + 2]) / 2 for i in (0, 1)])
    assert np.abs(np.mean(off, axis=0)).max() < 0.8


def test_an_exemplar_finds_itself_with_cosine_1_to_the_pixel(
    model: TrainedModel, engine: Engine, tmp_path: Path
) -> None:
    """On a level that is the scene itself, round a pixel on which a cell is centred."""
    pixels = texture(4, 200, 200)
    draw(pixels, BOAT, 96.5, 104.5)
    scene = save(tmp_path / "a.tif", pixels)
    searched = Searched(model, engine, [Exemplar("boat", scene, (76.5, 90.5, 116.5, 118.5))], scene, object_size=40.0)
    assert 128 in searched.method.templates[0].steps
    ((_, box, score),) = searched.best(1)
    curve = searched.method.templates[0].curve
    assert score == pytest.approx(float(curve(np.array(1.0))), abs=1e-3)
    assert box == pytest.approx((76.5, 90.5, 116.5, 118.5), abs=1)


def test_a_long_thing_turned_has_its_box_turned(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    pixels = texture(5, 260, 260)
    lying, standing = draw(pixels, TRAIN, 80, 80), draw(pixels, TRAIN, 180, 170, 1, 90)
    found = Searched(model, engine, shown["train"], save(tmp_path / "a.tif", pixels)).best(2)
    for truth in (lying, standing):
        away, ratio = min(error(b, truth) for _, b, _ in found)
        assert away < 2.5  # a quarter of a cell
        assert ratio < 1.15
    assert sorted(b[2] - b[0] > b[3] - b[1] for _, b, _ in found) == [False, True]


def test_two_classes_share_levels_and_are_told_apart(
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = texture(6, 300, 300)
    truth = [("boat", draw(pixels, BOAT, 80.4, 90.2)), ("boat", draw(pixels, BOAT, 200, 100, 1.2))]
    truth += [("pool", draw(pixels, POOL, 90, 220, 1, 180)), ("pool", draw(pixels, POOL, 220, 220, 1, 90))]
    exemplars = [*shown["pool"], *shown["boat"]]
    searched = Searched(model, engine, exemplars, save(tmp_path / "a.tif", pixels))
    assert searched.method.classes == ["boat", "pool"]
    boat, pool = searched.method.templates
    assert len(set(boat.steps) & set(pool.steps)) >= 4
    passes: list[int] = []

    def watched(engine: Engine, scene: Scene, radiometry: Any, step: int, **more: Any) -> Any:  # noqa: ANN401
        passes.append(step)
        return feature_tiles(engine, scene, radiometry, step, **more)

    monkeypatch.setattr(module, "feature_tiles", watched)
    found = searched.best(4)
    assert sorted(passes) == sorted({*boat.steps, *pool.steps}), "each level once, whatever the classes"
    for name, box in truth:
        near = min(found, key=lambda f: error(f[1], box)[0])
        assert near[0] == name
        assert error(near[1], box)[0] < 2


@pytest.fixture(scope="module")
def small(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path_factory: pytest.TempPathFactory
) -> Searched:
    """A boat and a pool, 200 x 230 pixels."""
    pixels = texture(7, 200, 230)
    draw(pixels, BOAT, 70, 60)
    draw(pixels, POOL, 150, 130)
    scene = save(tmp_path_factory.mktemp("small") / "a.tif", pixels)
    return Searched(model, engine, [*shown["boat"], *shown["pool"]], scene)


def rows(found: Candidates) -> npt.NDArray[np.float64]:
    """Class, box and score."""
    return np.column_stack([found.classes, found.boxes, found.scores])


@pytest.mark.parametrize("aoi", [None, (11, 7, 199, 171)])
def test_a_tile_border_changes_no_candidate(
    small: Searched, aoi: PixelBox | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "scene", small.scene.within(aoi))
    monkeypatch.setattr(small.method, "tile", 72)
    parts = rows(small.all())
    monkeypatch.setattr(small.method, "tile", 4096)
    whole = rows(small.all())
    assert len(whole) > 100
    assert parts.shape == whole.shape
    # The class weighs as much as the whole scene: the nearest is then of the same class.
    near = np.abs((parts[:, None] - whole[None]) * [999, 1, 1, 1, 1, 999]).max(axis=2)
    assert len(set(near.argmin(axis=1))) == len(whole)
    assert near.min(axis=1).max() < 1e-2


def test_the_same_twice(small: Searched, model: TrainedModel, shown: dict[str, list[Exemplar]]) -> None:
    again = Searched(model, small.engine, [*shown["boat"], *shown["pool"]], small.scene)
    for one, two in zip(small.method.templates, again.method.templates, strict=True):
        assert one.curve == two.curve
        assert torch.equal(one.patches, two.patches)
    first, second = small.all(), again.all()
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_a_threshold_leaves_out_what_is_below(small: Searched) -> None:
    every, few = small.all(), small.all(0.3)
    assert 0 < len(few.scores) < len(every.scores)
    np.testing.assert_allclose(np.sort(few.scores), np.sort(every.scores[every.scores >= 0.3]))
    both = Candidates.join(list(small.method.candidates(small.scene, {"boat": 1.0, "pool": 0.0})))
    assert set(both.classes) == {1}


def test_boxes_are_scaled_about_their_centre(small: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    one = small.all(0.3).boxes
    monkeypatch.setattr(small.method, "box_scale", 1.5)
    two = small.all(0.3).boxes
    np.testing.assert_allclose(two[:, 2:] - two[:, :2], 1.5 * (one[:, 2:] - one[:, :2]))
    np.testing.assert_allclose(two[:, 2:] + two[:, :2], one[:, 2:] + one[:, :2])


def test_places_are_counted(small: Searched) -> None:
    area = small.scene.within((11, 7, 199, 171))
    cells = {
        step: sum(t.valid.size for t in feature_tiles(small.engine, area, RADIOMETRY, step))
        for step in {s for t in small.method.templates for s in t.steps}
    }
    assert small.method.windows(area) == {t.name: sum(cells[s] for s in t.steps) for t in small.method.templates}


def test_an_area_of_interest_bounds_the_search(small: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "scene", small.scene.within((101, 83, 199, 183)))
    (name, box, _), *rest = small.best(3)
    assert name == "pool"
    assert error(box, (132, 112, 168, 148))[0] < 2.5
    assert all(s < 0.3 for _, _, s in rest)


def test_where_nothing_is_nothing_is_compared(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    pixels = texture(8, 200, 240)
    draw(pixels, BOAT, 60, 100)
    draw(pixels, BOAT, 180, 100)
    stored = pixels.clip(1).round().astype("uint16")
    stored[:, :, 130:] = 0
    searched = Searched(model, engine, shown["boat"], make_scene(tmp_path / "a.tif", stored, nodata=0), least=-1.0)
    found = searched.all()
    centre = (found.boxes[:, 0] + found.boxes[:, 2]) / 2
    cell = max(searched.method.templates[0].steps) / 16
    assert centre.max() < 130 + cell
    assert centre.max() > 100, "up to there all is compared"
    (_, box, score), (_, _, second) = searched.best(2)
    assert error(box, (40, 86, 80, 114))[0] < 2
    assert score > 0.3 > second


def test_scenes_without_a_valid_pixel(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    empty = make_scene(tmp_path / "a.tif", np.zeros((4, 150, 150), "uint16"), nodata=0)
    with pytest.raises(InputError, match="No valid pixel"):
        Searched(model, engine, shown["boat"], empty)
    with pytest.raises(InputError, match=r"a\.tif: the boat exemplar at .* holds no valid pixel"):
        Searched(model, engine, [Exemplar("boat", empty, (40, 40, 80, 70))], shown["boat"][0].scene)


def test_an_exemplar_at_the_border_works_and_is_told(
    model: TrainedModel, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = texture(9, 160, 200)
    draw(pixels, BOAT, 20, 80)
    scene = save(tmp_path / "shown.tif", pixels)
    exemplars = ExemplarSource(boxes=[[scene.path, 0, 66, 40, 94, "boat"]]).load([1, 2, 3, 4], "auto", ChipSpec())
    assert "1 of 1 exemplars are cut" in caplog.text
    pixels = texture(10, 200, 260)
    truth = draw(pixels, BOAT, 130, 90, 1, 90)
    searched = Searched(model, engine, exemplars, save(tmp_path / "a.tif", pixels))
    upright = searched.method.templates[0].patches[0, 0].abs().sum(0)
    assert upright.shape == (9, 9)
    # 20 scene pixels to the border are 24.5 pixels of the template, three cells of the four.
    assert (upright[:, 0] == 0).all()
    assert (upright[:, 1:] > 0).all()
    ((_, box, score), (_, _, second)) = searched.best(2)
    assert error(box, truth)[0] < 2
    assert score > 0.3 > second


def test_a_single_exemplar_takes_its_curve_from_the_background(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], small: Searched
) -> None:
    (found,) = Searched(model, engine, shown["boat"][:1], small.scene).method.templates
    assert len(found.left_out) == 0
    assert len(found.background) > 20
    assert found.curve.threshold == pytest.approx(ALONE * float(np.quantile(found.background, ORDINARY)))


def test_exemplars_score_each_other_without_themselves(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], small: Searched
) -> None:
    """Of two alike and one other, each alike scores one by its twin and little by the other."""
    boat, pool = shown["boat"][0], shown["pool"][0]
    mixed = [boat, boat, Exemplar("boat", pool.scene, pool.box)]
    (found,) = Searched(model, engine, mixed, small.scene).method.templates
    assert found.left_out[0] == pytest.approx(found.left_out[1])
    assert 0.35 < found.left_out[0] < 0.8
    assert found.left_out[2] < found.left_out[0] - 0.2
    lengths = found.patches.square().sum((2, 3, 4))
    torch.testing.assert_close(lengths, torch.ones(3, 8))


@pytest.mark.parametrize("side", [9, 30])
def test_a_scene_smaller_than_what_is_sought(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path, side: int
) -> None:
    searched = Searched(model, engine, shown["boat"][:1], save(tmp_path / "a.tif", texture(11, side, side)))
    (found,) = searched.method.templates
    assert len(found.background) == 0
    assert found.curve == ScoreCurve()
    assert np.isfinite(searched.all().boxes).all()


def test_levels_follow_the_sizes_of_the_exemplars(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], small: Searched
) -> None:
    scene = shown["boat"][0].scene
    boxes = [("a", 20), ("b", 20), ("b", 80), ("c", 320)]
    exemplars = [Exemplar(n, scene, (100, 100, 100 + side, 100 + side / 2)) for n, side in boxes]
    for found in Searched(model, engine, exemplars, small.scene, samples=2).method.templates:
        sides = np.array([side for name, side in boxes if name == found.name])
        at = np.array(found.steps) * 49 / 128  # the longer side that a level suits
        middle = np.median(sides)
        assert at.min() <= middle / 1.25**1.5
        assert at.max() >= middle * 1.25**1.5
        assert at.min() >= middle / 1.25**4.6
        assert at.max() <= middle * 1.25**4.6
        np.testing.assert_allclose(at[1:] / at[:-1], 1.25, rtol=0.03)


@pytest.mark.parametrize("setting", [{"cells": 8}, {"cells": 0}, {"views": 0}, {"scale_step": 1.0}])
def test_settings_that_cannot_be(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], setting: dict[str, float]
) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        Searched(model, engine, shown["boat"], shown["boat"][0].scene, **setting)


def test_without_exemplars_there_is_nothing_to_match(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]]
) -> None:
    with pytest.raises(InputError, match="needs exemplars"):
        Searched(model, engine, [], shown["boat"][0].scene)


def test_from_config_to_table_without_a_checkpoint(shown: dict[str, list[Exemplar]], tmp_path: Path) -> None:
    pixels = texture(12, 200, 240)
    truth = draw(pixels, BOAT, 120, 90)
    scene = save(tmp_path / "scenes" / "port.tif", pixels)
    rows = ",".join(f"[{e.scene.path},{','.join(map(str, e.box))},boat]" for e in shown["boat"])
    settings = [
        "ckpt_path=null", "model=resnet18", "model.weights=null", "search/method=template",
        "search.method.samples=8", "search.method.min_levels=1", "search.device=cpu", "search.precision=fp32",
        "search.threshold=0.02", f"scenes={scene.path}",
        f"exemplars.boxes=[{rows}]", f"paths.output_dir={tmp_path / 'out'}",
        "output.overlays=0", "output.page=false", "output.vector=[]",
    ]  # fmt: skip
    torch.manual_seed(0)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        result = search(compose("search", settings))
    assert not result.failed
    table = pd.read_csv(tmp_path / "out" / "detections.csv")
    assert len(table) >= 1
    assert set(table.class_name) == {"boat"}
    assert set(table.filename) == {"port.tif"}
    assert error(tuple(table.iloc[0, :4].astype(float)), truth)[0] < 2.5
    assert table.score.is_monotonic_decreasing
    assert (table.score[1:] < table.score[0] / 2).all()
