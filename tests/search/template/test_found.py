from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search import template as module
from siamese_sat.search.dense import feature_tiles
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.searching import search
from tests.search.template.planted import BOAT, POOL, TRAIN, Searched, draw, error, save, texture

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("count", "sizes_per_level", "further"), [(1, 1, 1.0), (3, 1, 1.0), (3, 3, 2.5)])
def test_things_are_found_where_they_are_larger_and_turned_too(
    count: int,
    sizes_per_level: int,
    further: float,
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    tmp_path: Path,
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
    settings = {"deep": None, "sizes_per_level": sizes_per_level}
    searched = Searched(model, engine, shown["boat"][:count], save(tmp_path / "a.tif", pixels), **settings)
    found = searched.best(5)
    raw = searched.method.templates[0].curve.raw
    assert raw(found[3][2]) > 1.5 * raw(found[4][2]), "nothing else is like a boat"
    for truth, (_, _, scale, _, near), more in zip(boxes, planted, slack, strict=True):
        (away, ratio), score = min((error(b, truth), s) for _, b, s in found[:4])
        assert away < further * near, "an untrained net's cells are the wider the fewer levels there are"
        assert ratio < 1.15 * more * (1.1 if sizes_per_level > 1 else 1)
        assert score > 0.3 or scale > 1, "at the exemplars' own size, wherever it lies between cells"


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_larger_thing_is_as_good_on_a_level_of_its_size(
    levels: int, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    """Round a pixel on which a cell is centred, as exemplars are."""
    pixels, step = texture(2, 320, 320), round(40 / 49 * 128 * 1.25**levels)
    middle = (round(150 * 128 / step / 8) * 8 + 0.5) * step / 128
    truth = draw(pixels, BOAT, middle, middle, 1.25**levels)
    settings = {"samples": 4, "deep": None, "sizes_per_level": 1}
    searched = Searched(model, engine, shown["boat"], save(tmp_path / "a.tif", pixels), **settings)
    template = searched.method.templates[0]
    assert step in template.steps
    (_, box, score), (_, _, second) = searched.best(2)
    away, ratio = error(box, truth)
    assert away < 2 * 1.25**levels  # a quarter of a cell
    assert ratio < 1.1
    assert score > 0.3 > second
    assert template.curve.raw(score) > 0.9 * np.median(template.left_out)


@pytest.mark.parametrize("levels", [4, 6])
def test_a_thing_much_larger_than_the_exemplars_is_found(
    levels: int, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    pixels = texture(2, 400, 400)
    truth = draw(pixels, BOAT, 190, 200, 1.25**levels)
    scene = save(tmp_path / "a.tif", pixels)
    found = [
        Searched(model, engine, shown["boat"], scene, deep=None, larger_levels=larger).best(1)[0] for larger in (8, 0)
    ]
    away, ratio = error(found[0][1], truth)
    assert away < 5 * 1.25**levels
    assert ratio < 1.2
    assert error(found[1][1], truth)[1] > 1.3, "it is not by the exemplars' own sizes"


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


@pytest.mark.parametrize("contrast", [0.0, 0.2, 1.0])
def test_an_exemplar_finds_itself_with_cosine_1_to_the_pixel(
    contrast: float, model: TrainedModel, engine: Engine, tmp_path: Path
) -> None:
    """On a level that is the scene itself, round a pixel on which a cell is centred."""
    pixels = texture(4, 200, 200)
    draw(pixels, BOAT, 96.5, 104.5)
    scene = save(tmp_path / "a.tif", pixels)
    exemplar = Exemplar("boat", scene, (76.5, 90.5, 116.5, 118.5))
    searched = Searched(
        model, engine, [exemplar], scene, object_size=40.0, sizes_per_level=1, contrast=contrast, deep=None
    )
    assert 128 in searched.method.templates[0].steps
    ((_, box, score),) = searched.best(1)
    curve = searched.method.templates[0].curve
    assert curve.raw(score) == pytest.approx(1, abs=2e-3)
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
    settings = {"sizes_per_level": 1, "match_detail": False}  # how blurred levels are shared is told elsewhere
    searched = Searched(model, engine, exemplars, save(tmp_path / "a.tif", pixels), **settings)
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


def test_things_that_would_not_fit_in_a_template_beside_smaller_ones_are_refused(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    """Levels follow from the smallest things: alone the larger would fit."""
    scene = save(tmp_path / "a.tif", texture(2, 200, 200))
    settings = {"deep": None, "samples": 4, "sizes_per_level": 4}
    boat = shown["boat"][0]
    x, y, right, low = boat.box
    longer = max(right - x, low - y)
    larger = replace(boat, class_name="larger", box=(x, y, x + longer * 1.25**0.4, y + longer * 1.25**0.4))
    Searched(model, engine, [larger], scene, **settings)
    with pytest.raises(InputError, match=r"sizes_per_level=4 seeks things of 7[0-9] level pixels in templates of 72"):
        Searched(model, engine, [boat, larger], scene, **settings)
