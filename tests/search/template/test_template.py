from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from siamese_sat.data.chip import ChipSpec
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import NEGATIVE, Exemplar, ExemplarSource
from siamese_sat.search.score import ALONE, ASKED, ORDINARY, ScoreCurve
from tests.conftest import make_scene
from tests.search.template.planted import BOAT, Searched, draw, error, save, texture


def test_the_same_twice(small: Searched, model: TrainedModel, shown: dict[str, list[Exemplar]]) -> None:
    again = Searched(model, small.engine, [*shown["boat"], *shown["pool"]], small.scene)
    for one, two in zip(small.method.templates, again.method.templates, strict=True):
        assert one.curve == two.curve
        assert len(one.renditions) == len(two.renditions)
        assert len({r.appears for r in one.renditions}) == 3
        for ours, theirs in zip(one.renditions, two.renditions, strict=True):
            for part in ("kernels", "patches", "weights"):
                assert torch.equal(getattr(ours.consensus, part), getattr(theirs.consensus, part))
                assert torch.equal(getattr(ours.deep, part), getattr(theirs.deep, part))
            np.testing.assert_array_equal(ours.consensus.shift, theirs.consensus.shift)
    first, second = small.all(), again.all()
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_what_is_unlike_does_not_change_how_what_is_sought_appears(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], small: Searched
) -> None:
    def boat_with(name: str) -> list[tuple[tuple[int, ...], float]]:
        x, y = shown["pool"][0].box[:2]
        other = Exemplar(name, shown["pool"][0].scene, (x, y, x + 17, y + 17))
        method = Searched(model, engine, [*shown["boat"], other], small.scene).method
        return [(r.levels, r.appears) for t in method.templates if t.name == "boat" for r in t.renditions]

    alone = Searched(model, engine, shown["boat"], small.scene).method.templates[0]
    wanted = [(r.levels, r.appears) for r in alone.renditions]
    assert boat_with(f"{NEGATIVE}boat") == wanted
    assert boat_with("pool") != wanted  # which is why it is said


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
    searched = Searched(model, engine, exemplars, save(tmp_path / "a.tif", pixels), sizes_per_level=1)
    (own,) = (r for r in searched.method.templates[0].renditions if r.appears == 49 and not r.grain)
    upright = own.consensus.patches[0, 0].abs().sum(0)
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


def test_several_exemplars_take_their_curve_from_each_other_and_the_background(small: Searched) -> None:
    boat, pool = small.method.templates
    asked, ordinary = ([f(t) for t in (boat, pool)] for f in (
        lambda t: ASKED * float(np.median(t.left_out)), lambda t: float(np.quantile(t.background, ORDINARY))
    ))  # fmt: skip
    assert boat.curve.threshold == pytest.approx(asked[0])
    assert asked[0] > ordinary[0]
    assert pool.curve.threshold == pytest.approx(max(asked[1], ordinary[1]))


def test_exemplars_score_each_other_without_themselves(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], small: Searched
) -> None:
    """Of two alike and one other, as long: an alike scores 1 by its twin, and what the other gives."""
    boat, (x0, y0, x1, y1) = shown["boat"][0], shown["pool"][0].box
    other = Exemplar("boat", boat.scene, (x0 - 2, y0 - 2, x1 + 2, y1 + 2))
    twins, pair, mixed = (
        Searched(model, engine, group, small.scene).method.templates[0].left_out
        for group in ([boat, boat], [boat, other], [boat, boat, other])
    )
    np.testing.assert_allclose(twins, 1, atol=1e-4)
    assert len(pair) == 2
    assert pair.max() < 0.7
    assert mixed[2] == pytest.approx(pair[1], abs=1e-4), "two alike say what one says"
    assert mixed[0] == pytest.approx(mixed[1])
    assert 0.5 < mixed[0] < 0.95


def test_exemplars_of_other_sizes_score_each_other_less(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    """A thing painted twice as large is the same at the common size, all but for its size."""
    pixels = texture(13, 300, 300)
    boxes = [draw(pixels, BOAT, 70.5, 80.5), draw(pixels, BOAT, 190.5, 190.5, 2)]
    scene = save(tmp_path / "a.tif", pixels)
    exemplars = [Exemplar("boat", scene, b) for b in boxes]
    found, even = (
        Searched(model, engine, exemplars, scene, samples=4, size_spread=s).method.templates[0].left_out
        for s in (0.7, 1e6)
    )
    assert even.min() > 0.6
    np.testing.assert_allclose(found, even * math.exp(-((math.log(2) / 0.7) ** 2) / 2), rtol=1e-4)


def test_levels_follow_the_sizes_of_the_exemplars(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], small: Searched
) -> None:
    scene = shown["boat"][0].scene
    boxes = [("a", 20), ("b", 20), ("b", 80), ("c", 320)]
    exemplars = [Exemplar(n, scene, (100, 100, 100 + side, 100 + side / 2)) for n, side in boxes]
    for found in Searched(model, engine, exemplars, small.scene, samples=2).method.templates:
        sides = np.array([side for name, side in boxes if name == found.name])
        # The longer sides that are sought.
        at = np.sort([r.appears * step / 128 for r in found.renditions for step in r.steps])
        middle = np.median(sides)
        assert at.min() <= middle / 1.25**1.5
        assert at.max() >= middle * 1.25**1.5
        assert at.min() >= middle / 1.25**4.6
        assert at.max() <= middle * 1.25**4.6
        np.testing.assert_allclose(at[1:] / at[:-1], 1.25, rtol=0.03)


@pytest.mark.parametrize("deep", [None, "layer3", "layer4"])
@pytest.mark.parametrize("side", [9, 30])
def test_a_scene_smaller_than_what_is_sought(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path, side: int, deep: str | None
) -> None:
    scene = save(tmp_path / "a.tif", texture(11, side, side))
    searched = Searched(model, engine, shown["boat"][:1], scene, deep=deep, larger_levels=8)
    (found,) = searched.method.templates
    assert len(found.background) == 0
    assert found.curve == ScoreCurve()
    assert np.isfinite(searched.all().boxes).all()


def test_scenes_without_a_valid_pixel(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    empty = make_scene(tmp_path / "a.tif", np.zeros((4, 150, 150), "uint16"), nodata=0)
    with pytest.raises(InputError, match="No valid pixel"):
        Searched(model, engine, shown["boat"], empty)
    with pytest.raises(InputError, match=r"a\.tif: the boat exemplar at .* holds no valid pixel"):
        Searched(model, engine, [Exemplar("boat", empty, (40, 40, 80, 70))], shown["boat"][0].scene)


@pytest.mark.parametrize(
    "setting",
    [
        {"cells": 8}, {"cells": 0}, {"views": 0}, {"scale_step": 1.0}, {"size_spread": 0.0}, {"contrast": -0.1},
        {"oblique_trust": 0.0}, {"sizes_per_level": 0}, {"sizes_per_level": 5},
        {"contrast": 1.1}, {"contrast": float("nan")}, {"deep_weight": -0.1}, {"deep_weight": float("nan")},
        {"deep_weight": float("inf")}, {"deep_cells": 4}, {"deep_cells": -1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], setting: dict[str, float]
) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        Searched(model, engine, shown["boat"], shown["boat"][0].scene, **setting)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"deep": "layer9"}, r"deep='layer9' is no backbone stage; stages are stem, .*layer4\.$"),
        ({"stage": "conv2", "deep": None}, r"stage='conv2' is no backbone stage; stages are stem, .*layer4\.$"),
        ({"deep": "layer2"}, r"deep='layer2' does not come after search\.method\.stage='layer2'; .*null\.$"),
        ({"stage": "layer3", "deep": "layer1"}, r"deep='layer1' does not come after .*stage='layer3'; .*null\.$"),
    ],
)
def test_stages_that_cannot_be(
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    setting: dict[str, str | None],
    sentence: str,
) -> None:
    with pytest.raises(InputError, match=sentence):
        Searched(model, engine, shown["boat"], shown["boat"][0].scene, **setting)


def test_without_exemplars_there_is_nothing_to_match(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]]
) -> None:
    with pytest.raises(InputError, match="needs exemplars"):
        Searched(model, engine, [], shown["boat"][0].scene)


def test_scores_on_the_scale_of_another_class(small: Searched) -> None:
    method, found = small.method, small.all()
    boat, pool = method.templates
    assert boat.curve != pool.curve
    scores = method.on_scale(0, found)
    boats = found.classes == 0
    np.testing.assert_allclose(scores[boats], found.scores[boats], rtol=1e-6)
    raw = np.array([pool.curve.raw(s) for s in found.scores[~boats]])
    np.testing.assert_allclose(scores[~boats], boat.curve(raw), rtol=1e-6)
    assert len(raw) > 0
    # A score that is certain, as a float has it, has a raw score too.
    sure = Candidates(found.boxes[:1], found.regions[:1], np.array([1]), np.array([1.0]))
    assert 0 < method.on_scale(0, sure)[0] <= 1
