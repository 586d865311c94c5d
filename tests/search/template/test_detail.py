"""Things larger than small exemplars are sought in levels that show no more of them than of the exemplars."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import siamese_sat.search.template as module
from siamese_sat.data.scene import Scene
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.dense import feature_tiles
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import NEGATIVE, Exemplar
from tests.search.template.planted import BOAT, POOL, Searched, draw, error, rows, save, texture

# Of a planted thing: boats are then 14 pixels long.
SMALL = 0.35


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Exemplar]]:
    """Three boats and two pools, small; one pool a little larger than the other."""
    pixels, boxes = texture(1, 200, 200), []
    for name, shape, cx, cy, scale in [
        ("boat", BOAT, 40.3, 40.7, SMALL),
        ("boat", BOAT, 90, 140.5, SMALL),
        ("boat", BOAT, 150.2, 60, SMALL),
        ("pool", POOL, 140, 150, SMALL),
        ("pool", POOL, 50.4, 160, 1.2 * SMALL),
    ]:
        boxes.append((name, draw(pixels, shape, cx, cy, scale)))
    scene = save(tmp_path_factory.mktemp("few") / "shown.tif", pixels)
    return {c: [Exemplar(c, scene, b) for n, b in boxes if n == c] for c in ("boat", "pool")}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A boat as small as those shown, and one four times as long."""
    pixels = texture(8, 180, 190)
    draw(pixels, BOAT, 40, 140, SMALL)
    draw(pixels, BOAT, 110, 80, 4 * SMALL)
    return save(tmp_path_factory.mktemp("detail") / "a.tif", pixels)


def levels(searched: Searched) -> set[tuple[int, float]]:
    return {level for t in searched.method.templates for r in t.renditions for level in r.levels}


@pytest.mark.parametrize("tile", [40, 72])
def test_a_tile_border_changes_no_candidate_of_a_blurred_level(
    model: TrainedModel,
    engine: Engine,
    few: dict[str, list[Exemplar]],
    scene: Scene,
    tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = Searched(model, engine, [*few["boat"], *few["pool"]], scene, larger_levels=8)
    blurs = {blur for _, blur in levels(searched)}
    assert 0 in blurs
    assert max(blurs) > 1
    # What is not blurred is tested elsewhere, and has far more tiles.
    blurred = [replace(t, renditions=tuple(r for r in t.renditions if r.grain)) for t in searched.method.templates]
    monkeypatch.setattr(searched.method, "templates", blurred)
    monkeypatch.setattr(searched.method, "tile", tile)
    parts = rows(searched.all())
    monkeypatch.setattr(searched.method, "tile", 4096)
    whole = rows(searched.all())
    assert len(whole) > 30
    assert parts.shape == whole.shape
    near = np.abs((parts[:, None] - whole[None]) * [999, 1, 1, 1, 1, 999]).max(axis=2)
    assert len(set(near.argmin(axis=1))) == len(whole)
    assert near.min(axis=1).max() < 1e-2


def test_what_scores_mean_is_learned_from_what_is_seen_as_it_is(
    model: TrainedModel, engine: Engine, few: dict[str, list[Exemplar]], scene: Scene
) -> None:
    """So neither curves nor what is found in levels that are not blurred change."""
    with_, without = (
        Searched(model, engine, few["boat"], scene, larger_levels=8, match_detail=on) for on in (True, False)
    )
    one, two = (searched.method.templates[0] for searched in (with_, without))
    assert one.curve == two.curve
    np.testing.assert_array_equal(one.left_out, two.left_out)
    np.testing.assert_array_equal(one.background, two.background)
    assert one.steps == two.steps
    assert all(blur == 0 for _, blur in levels(without))
    assert {step for step, _ in levels(with_)} == {step for step, _ in levels(without)}
    near = max(step for step, blur in levels(with_) if blur == 0)
    largest = 1.3 * 61.25 * near / 128  # boxes are as large as what was sought, or a little more
    small = []
    for searched in (with_, without):
        found = searched.all()
        small.append({tuple(r) for r in rows(found) if max(r[3] - r[1], r[4] - r[2]) < 0.5 * largest})
    assert small[0] == small[1]
    assert len(small[0]) > 10


def test_a_larger_thing_looks_more_like_small_exemplars(
    model: TrainedModel, engine: Engine, few: dict[str, list[Exemplar]], scene: Scene
) -> None:
    truth = (110 - 28, 80 - 19.6, 110 + 28, 80 + 19.6)
    scores = []
    for on in (True, False):
        searched = Searched(
            model, engine, few["boat"], scene, larger_levels=8, match_detail=on, rerank=0.0, vote_iou=0.0
        )
        found = searched.all()
        raw = np.array([searched.method.templates[0].curve.raw(float(s)) for s in found.scores])
        here = [i for i, box in enumerate(found.boxes) if error(tuple(box), truth)[0] < 8]
        fits = [i for i in here if error(tuple(found.boxes[i]), truth)[1] < 1.25]
        scores.append(raw[fits].max())
    assert scores[0] > scores[1] + 0.02


def test_what_scores_mean_is_learned_so_beside_other_classes_too(
    model: TrainedModel, engine: Engine, few: dict[str, list[Exemplar]], scene: Scene
) -> None:
    """Not all sizes of a class are sought sharp there."""
    shown = [
        replace(e, class_name=name, box=(*e.box[:2], e.box[0] + side, e.box[1] + side - 3))
        for name, side in (("boat", 12), ("raft", 13))
        for e in few["boat"]
    ]
    one, two = (
        Searched(model, engine, shown, scene, larger_levels=8, match_detail=on).method.templates for on in (True, False)
    )
    appears = [{r.appears for r in t.renditions} for t in one]
    sharp = [{r.appears for r in t.renditions if not r.grain} for t in one]
    assert any(some < every for some, every in zip(sharp, appears, strict=True))
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(ours.left_out, theirs.left_out)
        np.testing.assert_array_equal(ours.background, theirs.background)
        assert ours.curve == theirs.curve
        assert ours.curve.threshold > 0.1


@pytest.mark.parametrize("of", ["boat", "jetty"])
def test_classes_and_their_mistakes_share_blurred_levels(
    model: TrainedModel,
    engine: Engine,
    few: dict[str, list[Exemplar]],
    scene: Scene,
    of: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x0, y0, x1, y1 = few["pool"][0].box
    barge = replace(few["pool"][0], class_name="barge", box=(x0 - 8, y0 - 8, x1 + 8, y1 + 8))
    wide = replace(few["pool"][0], class_name=f"{NEGATIVE}{of}", box=(x0 - 20, y0 - 20, x1 + 20, y1 + 20))
    shown = [*few["boat"], wide] if of == "jetty" else [*few["boat"], *few["pool"], barge, wide]
    searched = Searched(model, engine, shown, scene, larger_levels=8)
    blurs = {t.name: dict(level for r in t.renditions for level in r.levels) for t in searched.method.templates}
    boat, mistake = blurs["boat"], blurs[wide.class_name]
    common = boat.keys() & mistake.keys()
    assert any(boat[step] for step in common), "though the mistake itself is as large as what is sharp"
    assert all(boat[step] == mistake[step] for step in common)
    if "barge" in blurs:
        assert any(boat[step] != blurs["barge"][step] for step in boat.keys() & blurs["barge"].keys())
    passes: list[tuple[int, float]] = []

    def watched(*args: Any, blur: float, **more: Any) -> Any:  # noqa: ANN401
        passes.append((args[3], blur))
        return feature_tiles(*args, blur=blur, **more)

    monkeypatch.setattr(module, "feature_tiles", watched)
    searched.all()
    assert sorted(passes) == sorted(set(passes)), "each once, whatever the classes"
    fitting = {
        level
        for t in searched.method.templates
        for r in t.renditions
        for level in r.levels
        if level[0] * r.appears / 128 <= 190
    }
    assert set(passes) == fitting
