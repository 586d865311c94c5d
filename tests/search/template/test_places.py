from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from siamese_sat.data.scene import PixelBox
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.dense import feature_tiles
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.score import ScoreCurve
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY
from tests.search.template.planted import BOAT, Searched, draw, error, rows, texture


@pytest.mark.parametrize("tile", [40, 72])
@pytest.mark.parametrize(("aoi", "larger"), [(None, 0), ((11, 7, 199, 171), 0), (None, 8)])
def test_a_tile_border_changes_no_candidate(
    small: Searched,
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    aoi: PixelBox | None,
    larger: int,
    tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if larger:
        small = Searched(model, engine, [*shown["boat"], *shown["pool"]], small.scene, larger_levels=larger)
    monkeypatch.setattr(small, "scene", small.scene.within(aoi))
    x0, y0, x1, y1 = small.scene.aoi
    levels = [-(-n * 128 // s) for t in small.method.templates for s in t.steps for n in (x1 - x0, y1 - y0)]
    assert sum(n % 16 > 0 for n in levels) > len(levels) / 2, "no whole number of the deep stage's cells"
    assert all(r.deep is not None for t in small.method.templates for r in t.renditions)
    monkeypatch.setattr(small.method, "tile", tile)
    parts = rows(small.all())
    monkeypatch.setattr(small.method, "tile", 4096)
    whole = rows(small.all())
    assert len(whole) > 100
    assert parts.shape == whole.shape
    # The class weighs as much as the whole scene: the nearest is then of the same class.
    near = np.abs((parts[:, None] - whole[None]) * [999, 1, 1, 1, 1, 999]).max(axis=2)
    assert len(set(near.argmin(axis=1))) == len(whole)
    assert near.min(axis=1).max() < 1e-2


def test_a_threshold_leaves_out_what_is_below(small: Searched) -> None:
    every, few = small.all(), small.all(0.1)
    assert 1 < len(few.scores) < len(every.scores)
    np.testing.assert_allclose(np.sort(few.scores), np.sort(every.scores[every.scores >= 0.1]), rtol=1e-5)
    both = Candidates.join(list(small.method.candidates(small.scene, {"boat": 1.0, "pool": 0.0})))
    assert set(both.classes) == {1}


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("level", [0, 2, 4])
def test_a_size_unlike_the_exemplars_counts_less(
    level: int, beyond: bool, small: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less and less; a size that no exemplar asks for hardly less than the largest of those."""
    boat = small.method.templates[0]
    sizes = sorted(((s, r) for r in boat.renditions for s in r.steps), key=lambda f: f[0] * f[1].appears)
    assert len(sizes) == 5
    step, rendition = sizes[level]
    assert rendition.largest == pytest.approx(40 * 1.25**2, rel=0.01)
    curve = ScoreCurve(0.5, 1.0)
    monkeypatch.setattr(small.method, "least", -1.0)
    found = []
    middle = sizes[2][0] * sizes[2][1].appears / 128
    for spread, largest in ((0.3, middle if beyond else rendition.largest), (1e6, rendition.largest)):
        one = replace(boat, renditions=(replace(rendition, steps=(step,), largest=largest),), curve=curve)
        monkeypatch.setattr(small.method, "templates", [one])
        monkeypatch.setattr(small.method, "size_spread", spread)
        found.append(np.array([curve.raw(s) for s in small.all().scores]))
    assert (found[1] > 0.1).sum() > 3
    ratio = rendition.appears * step / 128 / 40
    assert abs(math.log(ratio)) == pytest.approx(abs(level - 2) * math.log(1.25), abs=0.02)
    part = 0.9 if beyond and level == 4 else math.exp(-((math.log(ratio) / 0.3) ** 2) / 2)
    np.testing.assert_allclose(found[0], found[1] * part, rtol=1e-4)


@pytest.mark.parametrize("per_level", [1, 3])
def test_larger_sizes_join_and_change_nothing_else(
    per_level: int, small: Searched, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]]
) -> None:
    exemplars = [*shown["boat"], *shown["pool"]]
    few, more = (
        Searched(model, engine, exemplars, small.scene, sizes_per_level=per_level, larger_levels=n) for n in (0, 4)
    )
    for one, two in zip(few.method.templates, more.method.templates, strict=True):
        assert one.curve == two.curve
        np.testing.assert_array_equal(one.left_out, two.left_out)
        np.testing.assert_array_equal(one.background, two.background)
        sought = [sorted(s * r.appears / 128 for r in t.renditions for s in r.steps) for t in (one, two)]
        assert sought[1][:5] == sought[0]
        assert sought[1][5:] == pytest.approx([sought[0][-1] * 1.25**k for k in (1, 2)], rel=0.05)
        assert all(r.largest == pytest.approx(sought[0][-1]) for r in two.renditions)
    plain, every = (searched.all() for searched in (few, more))
    known = {tuple(row) for row in rows(plain)}
    new = np.array([tuple(row) not in known for row in rows(every)])
    assert len(every.scores) - new.sum() == len(plain.scores)
    assert new.sum() > 3
    sides = [np.sqrt((b[:, 2:] - b[:, :2]).prod(axis=1)) for b in (plain.boxes, every.boxes[new])]
    for number in (0, 1):
        assert sides[1][every.classes[new] == number].min() > sides[0][plain.classes == number].max()


@pytest.mark.parametrize("aoi", [None, (20, 20, 140, 110), (50, 45, 90, 75)])
def test_what_is_larger_than_the_scene_is_sought_only_where_the_exemplars_ask_for_it(
    aoi: PixelBox | None, small: Searched, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]]
) -> None:
    searched = Searched(model, engine, shown["boat"], small.scene, larger_levels=8)
    searched.scene = small.scene.within(aoi)
    (boat,) = searched.method.templates
    sought = [(r.appears * s / 128, s) for r in boat.renditions for s in r.steps]
    x0, y0, x1, y1 = searched.scene.aoi
    limit = max(x1 - x0, y1 - y0, boat.renditions[0].largest)
    fits = [step for size, step in sought if size <= limit]
    assert len(fits) == {230: 10, 120: 7, 40: 5}[x1 - x0]
    cells = [math.ceil((x1 - x0) * 16 / step) * math.ceil((y1 - y0) * 16 / step) for step in fits]
    assert searched.method.windows(searched.scene) == {"boat": sum(cells)}
    found = searched.all()
    assert len(found.scores) > 3
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).max() <= 1.01 * limit


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
    assert small.method.windows(area) == {
        t.name: sum(cells[s] for r in t.renditions for s in r.steps) for t in small.method.templates
    }


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
    holed = make_scene(tmp_path / "a.tif", stored, nodata=0)
    searched = Searched(model, engine, shown["boat"], holed, least=-1.0, deep=None)
    found = searched.all()
    centre = (found.boxes[:, 0] + found.boxes[:, 2]) / 2
    cell = max(searched.method.templates[0].steps) / 16
    assert centre.max() < 130 + cell
    assert centre.max() > 100, "up to there all is compared"
    (_, box, score), (_, _, second) = searched.best(2)
    assert error(box, (40, 86, 80, 114))[0] < 2
    assert score > 0.3 > second
