from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search import rerank as module
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.parts import Parts
from siamese_sat.search.rerank import (
    BASE,
    FADE,
    FLOOR,
    FOR_SURE,
    FOR_WRONG,
    LEAST_ASKED,
    MANY,
    MIDDLE,
    RIDGE,
    ROOM,
    STANDING,
    STEEPNESS,
    STEPS,
    SURROUNDINGS,
    Gathered,
    looks,
)
from siamese_sat.search.run import search_scenes
from siamese_sat.search.unlike import Unlike
from tests.conftest import make_scene
from tests.search.conftest import correlation_model, engine_of

SIDE = 20.0


def things(
    seed: int, count: int = 60, classes: int = 1
) -> tuple[Candidates, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Half of them look alike, the others each in its own way; scores tell them apart in part. With their scenes."""
    rng = np.random.default_rng(seed)
    true = np.arange(count) % 2 == 0
    common = rng.normal(size=(classes, 48))
    number = rng.integers(0, classes, count)
    seen = np.where(true[:, None], common[number] + 0.8 * rng.normal(size=(count, 48)), rng.normal(size=(count, 48)))
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    scores = 1 / (1 + np.exp(-(true + rng.normal(0, 1, count))))
    corner = rng.uniform(0, 2000, (count, 2))
    boxes = np.concatenate([corner, corner + SIDE], axis=1)
    kept = (seen * STEPS).round().astype(np.int8)
    return Candidates(boxes, boxes, number, scores, kept), true, rng.integers(0, 3, count)


def rerank(found: Candidates, scenes: npt.NDArray[np.int64], weight: float) -> Candidates:
    """The candidates in their order, with the scores that they have when all scenes are gathered."""
    likely = found.scores >= FLOOR
    seen, unseen = module.rerank(found.at(likely), scenes[likely], replace(found.at(~likely), looks=None), weight)
    scores = found.scores.copy()
    scores[likely], scores[~likely] = seen.scores, unseen.scores
    return replace(found, scores=scores)


def alike(count: int, score: float) -> Candidates:
    """Candidates far from each other, of one look, one size and one score."""
    side = np.arange(count)[:, None] * 1000.0
    boxes = np.concatenate([side, side, side + SIDE, side + SIDE], axis=1)
    return Candidates(boxes, boxes, np.zeros(count, np.int64), np.full(count, score), np.full((count, 16), 64, np.int8))


@pytest.mark.parametrize("seed", range(5))
def test_what_looks_like_the_others_rises(seed: int) -> None:
    found, true, scenes = things(seed)
    again = rerank(found, scenes, 2.0)
    before, after = (average_precision_score(true, c.scores) for c in (found, again))
    assert after > before + 0.02
    np.testing.assert_array_equal(again.boxes, found.boxes)
    assert ((again.scores >= 0) & (again.scores <= 1)).all()


def test_what_is_known_to_be_wrong_never_rises() -> None:
    """However surely all that look like it are right; yet it is heard."""
    found = alike(300, 0.9)
    kept = np.zeros((300, 16), np.int8)
    kept[np.arange(300), np.arange(300) % 2 * 8] = 127

    def of(*some: float) -> npt.NDArray[np.float64]:
        scores = np.where(np.arange(300) % 2, 0.1, 0.9)
        scores[: 2 * len(some) : 2] = some
        return rerank(replace(found, scores=scores, looks=kept), np.zeros(300, np.int64), 2.0).scores

    plain, known, nearly = of(), of(FLOOR), of(FLOOR + 1e-6)
    assert nearly[0] > 0.3
    assert known[0] == FLOOR
    np.testing.assert_allclose(known[1:], nearly[1:], atol=1e-4)
    assert 1 - of(*[FLOOR] * 60)[200] > 5 * (1 - plain[200])


def test_classes_do_not_mix() -> None:
    found, _, scenes = things(1, 160, classes=2)
    both = rerank(found, scenes, 2.0)
    for number in (0, 1):
        mine = found.classes == number
        np.testing.assert_array_equal(rerank(found.at(mine), scenes[mine], 2.0).scores, both.scores[mine])


def test_the_order_of_candidates_does_not_show() -> None:
    found, _, scenes = things(2)
    turn = np.random.default_rng(0).permutation(len(scenes))
    turned = rerank(found.at(turn), scenes[turn], 2.0).scores
    np.testing.assert_allclose(turned, rerank(found, scenes, 2.0).scores[turn], rtol=1e-9)


def test_without_looks_or_weight_nothing_changes() -> None:
    found, _, scenes = things(3)
    np.testing.assert_array_equal(rerank(found, scenes, 0.0).scores, found.scores)
    blind = replace(found, looks=None)
    np.testing.assert_array_equal(rerank(blind, scenes, 2.0).scores, blind.scores)
    none = found.at(np.empty(0, np.int64))
    assert len(rerank(none, scenes[:0], 2.0).scores) == 0


def test_few_say_little() -> None:
    """A single candidate keeps its score, and no candidate that comes on top of some changes theirs much."""
    found, _, scenes = things(3)
    one = found.at(np.array([0]))
    part = 1 / (1 + FADE)
    logit = np.log(one.scores / (1 - one.scores))
    lean = part * (module.LEAST_ASKED - MIDDLE)
    expected = (1 + part * (STEEPNESS - 1)) * (logit - MIDDLE - lean) + MIDDLE
    again = rerank(one, scenes[:1], 2.0).scores
    np.testing.assert_allclose(np.log(again / (1 - again)), expected, atol=1e-6)
    np.testing.assert_allclose(again, one.scores, atol=0.03)
    for count in (5, 20, 40):
        fewer, more = (rerank(found.at(np.arange(n)), scenes[:n], 2.0).scores for n in (count, count + 1))
        assert np.abs(more[:count] - fewer).max() < 0.2


def test_the_unlikely_say_nothing_and_never_rise() -> None:
    found, _, scenes = things(4)
    kept = found.scores >= 0.3
    some = replace(found, scores=np.where(kept, found.scores, FLOOR * found.scores))
    again = rerank(some, scenes, 2.0)
    assert (again.scores[~kept] <= some.scores[~kept]).all()
    np.testing.assert_array_equal(again.scores[kept], rerank(some.at(kept), scenes[kept], 2.0).scores)


def odds(found: Candidates) -> npt.NDArray[np.float64]:
    again = rerank(found, np.zeros(len(found.scores), np.int64), 2.0).scores
    return again / (1 - again)


def test_the_more_are_likely_wrong_the_more_is_asked() -> None:
    """Twice as many that look wrong lower the odds of each, by a power."""

    def of(count: int) -> float:
        all_of = odds(alike(count, 0.1))
        assert np.ptp(np.log(all_of)) < 1e-5
        return float(all_of[0])

    # Nearly all of it counts, and those with the same look say nothing of each other.
    assert of(9999) / of(19999) == pytest.approx(2 ** (FOR_WRONG * STEEPNESS), rel=0.02)
    asked = BASE + FOR_WRONG * math.log(10_000)
    assert math.log(of(9999)) == pytest.approx(STEEPNESS * (math.log(1 / 9) - asked) + MIDDLE, rel=0.01)
    # Where none looks wrong, nothing more is asked of many.
    sure = [odds(alike(n, 0.8))[0] for n in (500, 5000)]
    assert sure[1] == pytest.approx(sure[0], rel=0.1)
    assert sure[0] > 4


@pytest.mark.parametrize(
    ("wrong", "sure", "asked"), [(0, 0, -1.0), (89, 0, -1.0), (100, 0, -0.77), (999, 0, 3.816), (999, 99, 0.592)]
)
def test_what_is_asked(wrong: int, sure: int, asked: float) -> None:
    assert module._asked(wrong, sure, ROOM) == pytest.approx(asked, abs=1e-3)
    assert module._asked(wrong, 100_000, ROOM) == LEAST_ASKED


@pytest.mark.parametrize("times", [0.1, 10, 1000])
def test_of_an_archive_many_times_as_large_as_much_is_asked(times: float) -> None:
    assert module._asked(9999, 99, ROOM) == pytest.approx(5.197, abs=1e-3)
    larger = module._asked(round(10_000 * times) - 1, round(100 * times) - 1, times * ROOM)
    assert larger == pytest.approx(module._asked(9999, 99, ROOM))


def test_room_is_what_was_searched_by_the_size_of_things() -> None:
    """Of two classes found alike less is asked of the smaller, whose like there was more room for."""
    one = alike(3000, 0.1)
    both = replace(Candidates.join([one, one]), classes=np.repeat([0, 1], 3000))

    def of(area: float, names: Sequence[str] = ("a", "b")) -> npt.NDArray[np.float64]:
        gathered = Gathered(2.0, [10.0, 20.0])
        gathered.add("a", both, area)
        gathered.add("b", both.at(np.empty(0, np.int64)), area)
        scores = gathered.conclude(names)["a"].scores
        return np.log(scores / (1 - scores)).reshape(2, -1)[:, 0]

    times = (FOR_WRONG - FOR_SURE) * STEEPNESS
    room = of(1e6)
    assert room[0] - room[1] == pytest.approx(times * math.log(4), rel=0.02)
    np.testing.assert_allclose(of(2e6) - room, times * math.log(2), rtol=0.02)
    np.testing.assert_allclose(of(2e6, ["a"]), room, rtol=1e-6)
    # Where nobody knows how much was searched both are asked for as much.
    unknown = of(0)
    assert unknown[0] == unknown[1]


def test_the_more_are_surely_right_the_less_is_asked() -> None:
    """The same doubtful places have better odds where others are surely right, though they resemble none of these."""
    doubtful = [0.1, 0.3] * 1000

    def of(sure: int) -> npt.NDArray[np.float64]:
        found = alike(2000 + sure, 0.99)
        found.scores[:2000] = doubtful
        kept = np.zeros((2000 + sure, 2000 + max(sure, 1)), np.int8)
        kept[np.arange(2000 + sure), np.arange(2000 + sure)] = 127
        return odds(replace(found, looks=kept))[:2000]

    none, some, many = (float(np.log(of(count)).mean()) for count in (0, 50, 200))
    assert none < some - 1 < many - 1.5


@pytest.mark.parametrize("count", [10, 60, 400])
def test_where_nothing_is_found_little_is_made_of_it(count: int) -> None:
    """Of places that look like nothing and score as chance has it, of many fewer reach 0.3, of few hardly more."""
    before = after = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found, _, scenes = things(seed, count)
        noise = rng.normal(size=(count, 48))
        noise *= STEPS / np.linalg.norm(noise, axis=1, keepdims=True)
        scores = FLOOR * rng.pareto(1.5, count) + FLOOR
        found = replace(found, scores=scores.clip(0, 0.9), looks=noise.round().astype(np.int8))
        before += int((found.scores >= 0.3).sum())
        after += int((rerank(found, scenes, 2.0).scores >= 0.3).sum())
    assert after <= before + 5
    assert count < 400 or after < before / 2


def test_no_candidate_is_its_own_witness() -> None:
    """What is said of each is what a regression of all others predicts."""
    found, _, scenes = things(5, 30)
    assert found.looks is not None
    surroundings = np.random.default_rng(0).integers(-100, 100, (30, 64)).astype(np.int8)
    found = replace(found, surroundings=surroundings)
    moved = module._moved(found, scenes, 1.0)
    logit = np.log(found.scores / (1 - found.scores))
    standing = module._standing(found.scores, found.boxes, scenes)
    around = surroundings - surroundings.mean(axis=0)
    around *= np.sqrt(SURROUNDINGS * 30 / (30 + MANY)) / np.linalg.norm(around, axis=1, keepdims=True)
    features = np.concatenate([module._unit(found.looks), np.sqrt(STANDING) * standing, around], axis=1)
    for i in range(30):
        others = np.arange(30) != i
        kernel = features[others] @ features[others].T + RIDGE * np.eye(29)
        predicted = features[i] @ features[others].T @ np.linalg.solve(kernel, (logit - logit.mean())[others])
        assert moved[i] - logit[i] == pytest.approx(predicted, abs=1e-5)


def test_of_many_candidates_some_speak_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found, true, scenes = things(6, 600)
    full = rerank(found, scenes, 2.0)
    monkeypatch.setattr(module, "MOST", 100)
    some = rerank(found, scenes, 2.0)
    assert not np.array_equal(some.scores, full.scores)
    before, after, best = (average_precision_score(true, c.scores) for c in (found, some, full))
    assert before + 0.5 * (best - before) < after


def test_what_stands_as_the_sure_ones_do_rises() -> None:
    """Sure things stand in rows; of two that look the same and are as likely, the one in a row comes first."""
    row = np.stack([np.arange(12) * 2 * SIDE, np.zeros(12)], axis=1)
    rng = np.random.default_rng(0)
    lone = rng.permutation(12)[:, None] * [0.0, 40 * SIDE] + [0.0, 100 * SIDE]
    corner = np.concatenate([row, lone])
    boxes = np.concatenate([corner, corner + SIDE], axis=1)
    scores = np.concatenate([[0.5], np.full(11, 0.9), [0.5], np.full(11, 0.2)])
    same = np.full((24, 16), 64, np.int8)
    found = Candidates(boxes, boxes, np.zeros(24, np.int64), scores, same)
    again = rerank(found, np.zeros(24, np.int64), 2.0)
    assert again.scores[0] > again.scores[12]
    moved = module._moved(found, np.zeros(24, np.int64), 2.0)
    assert moved[0] > moved[12]
    # In another scene nothing stands beside it.
    apart = module._standing(scores, boxes, np.arange(24))
    assert np.ptp(apart[:, :3]) == 0


def test_looks_are_of_one_length_and_blind_to_what_lies_evenly() -> None:
    cells = torch.randn(3, 80, 9, 9, generator=torch.Generator().manual_seed(0))
    seen = looks(cells, 1.0)
    assert seen.shape == (3, module.GRID**2 * module.DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(seen.astype(float), axis=1), STEPS, rtol=0.01)
    np.testing.assert_allclose(looks(cells + torch.randn(3, 80, 1, 1), 1.0), seen, atol=1)
    assert not np.allclose(looks(cells + 3, 0.0), looks(cells, 0.0), atol=3)
    assert looks(cells[:0], 0.2).shape == (0, module.GRID**2 * module.DIMENSIONS)


def test_looks_of_the_best_are_kept_whichever_scene_comes_first() -> None:
    found, _, which = things(10, 400, classes=2)
    places = {str(i): found.at(which == i) for i in range(3)}
    results = []
    for order in (("0", "1", "2"), ("2", "0", "1")):
        gathered = Gathered(2.0, most=30)
        for name in order:
            gathered.add(name, places[name])
        results.append(gathered.conclude(["0", "1", "2", "3"]))
    assert list(results[0]) == ["0", "1", "2"]
    for name, mine in results[0].items():
        other = results[1][name]
        for one in (mine, other):
            turn = np.lexsort(one.boxes.T)
            one.scores[:], one.boxes[:], one.classes[:] = one.scores[turn], one.boxes[turn], one.classes[turn]
        np.testing.assert_array_equal(mine.boxes, other.boxes)
        np.testing.assert_array_equal(mine.scores, other.scores)
        assert len(mine.scores) == len(places[name].scores)
        before = {
            tuple(b): (c, s)
            for b, c, s in zip(places[name].boxes, places[name].classes, places[name].scores, strict=True)
        }
        for box, number, score in zip(mine.boxes, mine.classes, mine.scores, strict=True):
            number_before, score_before = before[tuple(box)]
            assert number == number_before
            best = np.sort(found.scores[found.classes == number])[-30]
            assert score_before >= best or score <= score_before, "of those without looks none rises"


def test_enough_room_and_the_pool_is_the_whole() -> None:
    found, _, which = things(11, 200)
    gathered = Gathered(2.0)
    for i in range(3):
        gathered.add(str(i), found.at(which == i))
    expected = rerank(found, which, 2.0)
    for i, mine in enumerate(gathered.conclude(["0", "1", "2"]).values()):
        turn, other = np.lexsort(mine.boxes.T), np.lexsort(found.boxes[which == i].T)
        np.testing.assert_allclose(mine.scores[turn], expected.scores[which == i][other], rtol=1e-5)


def test_of_too_many_the_forgotten_are_asked_for_as_much_as_the_others() -> None:
    """Of things of one look those that scored less, and so lost their looks, stay below the others and never rise."""
    few = replace(alike(40, 0.1), scores=np.linspace(0.1, 0.2, 40))
    gathered = Gathered(2.0, most=20)
    gathered.add("a", few)
    found = gathered.conclude(["a"])["a"]
    order = np.lexsort(found.boxes.T)
    assert (found.scores[order][:20] <= few.scores[:20]).all()
    assert found.scores[order][:20].max() < found.scores[order][20:].min()


@pytest.mark.parametrize("score", [0.0, 0.01, 0.04, 0.1, 0.9, 1.0])
def test_more_than_can_be_kept_of_any_score(score: float) -> None:
    gathered = Gathered(2.0, most=5)
    gathered.add("a", alike(30, score))
    gathered.add("b", alike(0, score))
    found = gathered.conclude(["a", "b"])
    assert len(found["a"].scores) == 30
    assert len(found["b"].scores) == 0
    assert np.isfinite(found["a"].scores).all()
    assert ((found["a"].scores >= 0) & (found["a"].scores <= 1)).all()


class Planted:
    """A method that knows what is where, and says so as far as it is asked."""

    def __init__(self, weight: float, places: Mapping[str, Candidates]) -> None:
        self.classes, self.rerank, self.places = ["boat"], weight, places

    def prepare(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        radiometry_of: RadiometryOf,
        scenes: Sequence[Scene],
    ) -> None:
        """One class of each name that is shown, in their order."""
        self.classes = list(dict.fromkeys(e.class_name for e in exemplars))

    def windows(self, scene: Scene) -> dict[str, int]:
        return {"boat": 1}

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        mine = self.places[Path(scene.path).name]
        yield mine.at(mine.scores >= thresholds["boat"])


def test_scenes_are_re_ranked_together_whatever_is_asked(tmp_path: Path) -> None:
    found, _, which = things(7, 60)
    found = replace(found, boxes=found.boxes / 32, regions=found.regions / 32)
    names = ["a.tif", "b.tif", "c.tif"]
    scenes = {n: make_scene(tmp_path / n, np.ones((4, 64, 64), "uint16")) for n in names}
    places = {name: found.at(which == i) for i, name in enumerate(names)}
    least = 0.5
    plain, all_of, some = (
        search_scenes(scenes, Planted(weight, places), {"boat": asked}, 1.0).detections
        for weight, asked in ((0.0, least), (2.0, 0.0), (2.0, least))
    )
    assert len(all_of) == 60
    columns = ["x_min", "y_min", "filename"]
    reaching = all_of[all_of.score >= least].reset_index(drop=True)
    assert reaching[columns].equals(some[columns])
    np.testing.assert_allclose(reaching.score, some.score, rtol=1e-5)
    # Some that would not have reached the threshold by themselves do now, or the other way round.
    assert set(zip(plain.x_min, plain.y_min, strict=True)) != set(zip(some.x_min, some.y_min, strict=True))


def test_a_scene_that_cannot_be_searched_says_nothing(tmp_path: Path) -> None:
    found, _, which = things(7, 60)
    found = replace(found, boxes=found.boxes / 32, regions=found.regions / 32)
    scenes = {n: make_scene(tmp_path / n, np.ones((4, 64, 64), "uint16")) for n in ("a.tif", "b.tif", "c.tif")}
    places = {name: found.at(which == i) for i, name in enumerate(scenes)}

    class Failing(Planted):
        def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
            (every,) = super().candidates(scene, thresholds)
            yield every.at(np.arange(3))
            if scene.path.endswith("b.tif"):
                raise InputError("b.tif: it breaks off.")
            yield every.at(np.arange(3, len(every.scores)))

    result = search_scenes(scenes, Failing(2.0, places), {"boat": 0.0}, 1.0)
    assert list(result.failed) == [scenes["b.tif"].path]
    others = {name: scene for name, scene in scenes.items() if name != "b.tif"}
    expected = search_scenes(others, Planted(2.0, places), {"boat": 0.0}, 1.0).detections
    pd.testing.assert_frame_equal(result.detections, expected)


def test_what_a_negative_lies_on_draws_its_like_down(tmp_path: Path) -> None:
    """Beside negatives, others of their look score less too, where no negative is."""
    scene = make_scene(tmp_path / "a.tif", np.ones((4, 64, 64), "uint16"))
    count = 120
    found = alike(count, 0.6)
    kept = np.zeros((count, 16), np.int8)
    kept[np.arange(count), np.arange(count) % 2 * 8] = 127  # every other one looks otherwise
    found = replace(found, boxes=found.boxes / 1e4, regions=found.regions / 1e4, looks=kept)
    model = correlation_model()

    class Both(Planted):
        """Boats, and negatives on half of those that look otherwise."""

        def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
            yield found
            if len(self.classes) > 1:
                unlike = found.at(np.arange(1, count, 4))
                yield replace(unlike, classes=np.ones(len(unlike.scores), np.int64), scores=unlike.scores + 0.3)

    def scores(*negatives: str) -> npt.NDArray[np.float64]:
        method = Unlike(Both(2.0, {}), [Exemplar(n, scene, (60, 60, 61, 61)) for n in negatives])
        shown = [Exemplar("boat", scene, (0, 0, 1, 1))]
        method.prepare(model, engine_of(model), shown, lambda s: model.radiometry, [scene])
        rows = search_scenes({"a.tif": scene}, method, {"boat": 0.0}, 1.0).detections.sort_values("x_min")
        return rows.score.to_numpy()

    plain, lowered = scores(), scores("jetty")
    assert len(plain) == len(lowered) == count
    free, alike_to_it = lowered[0::2], lowered[3::4]
    assert alike_to_it.max() < free.min() - 0.05
    assert np.ptp(plain) < 0.05


def test_looks_are_kept_of_scenes_that_are_done(tmp_path: Path) -> None:
    found, _, _ = things(8)
    parts = Parts(tmp_path, "0" * 64)
    parts.keep("a.tif", found)
    parts.keep("b.tif", Candidates(found.boxes, found.regions, found.classes, found.scores))
    taken = parts.taken(["a.tif", "b.tif"])
    assert taken["a.tif"].looks is not None
    np.testing.assert_array_equal(taken["a.tif"].looks, found.looks)
    assert taken["a.tif"].looks.dtype == np.int8
    assert taken["b.tif"].looks is None


def test_candidates_joined_keep_their_looks_where_all_have_some() -> None:
    found, _, _ = things(9)
    first, second = found.at(np.arange(10)), found.at(np.arange(10, 60))
    joined = Candidates.join([Candidates.join([]), first, second])
    assert joined.looks is not None
    np.testing.assert_array_equal(joined.looks, found.looks)
    blind = Candidates(second.boxes, second.regions, second.classes, second.scores)
    assert Candidates.join([first, blind]).looks is None


def placed(count: int, told: bool = True) -> tuple[Candidates, npt.NDArray[np.bool_]]:
    """Half of them stand in one kind of place, the others in another, and all look the same; which are true."""
    rng = np.random.default_rng(0)
    true = np.arange(count) % 2 == 0
    kinds = rng.normal(size=(2, 64))
    around = kinds[true.astype(int)] + 0.5 * rng.normal(size=(count, 64))
    around *= 127 / np.linalg.norm(around, axis=1, keepdims=True)
    scores = 1 / (1 + np.exp(-(true + rng.normal(0, 1, count))))
    corner = rng.uniform(0, 1e6, (count, 2))
    boxes = np.concatenate([corner, corner + SIDE], axis=1)
    same = np.full((count, 16), 64, np.int8)
    surroundings = around.round().astype(np.int8) if told else np.zeros((count, 64), np.int8)
    return Candidates(boxes, boxes, np.zeros(count, np.int64), scores, same, surroundings), true


def test_what_stands_where_the_others_do_rises() -> None:
    found, true = placed(3000)
    scenes = np.zeros(3000, np.int64)
    before = average_precision_score(true, found.scores)
    unknown = average_precision_score(true, rerank(replace(found, surroundings=None), scenes, 2.0).scores)
    assert unknown == pytest.approx(before, abs=0.02)
    assert average_precision_score(true, rerank(found, scenes, 2.0).scores) > before + 0.1


def test_surroundings_say_less_of_few() -> None:
    def gain(count: int) -> float:
        found, true = placed(count)
        logit, scenes = np.log(found.scores / (1 - found.scores)), np.zeros(count, np.int64)
        moved = module._moved(found, scenes, 1.0) - logit
        return float(moved[true].mean() - moved[~true].mean())

    assert 0 < gain(60) < gain(600) < gain(6000)
    assert gain(60) < 0.2 * gain(6000)


def test_surroundings_that_are_not_known_or_all_the_same_say_nothing() -> None:
    found, _ = placed(300, told=False)
    scenes = np.zeros(300, np.int64)
    expected = rerank(replace(found, surroundings=None), scenes, 2.0).scores
    np.testing.assert_allclose(rerank(found, scenes, 2.0).scores, expected, atol=1e-6)
    alike = replace(found, surroundings=np.full((300, 64), 15, np.int8))
    np.testing.assert_allclose(rerank(alike, scenes, 2.0).scores, expected, atol=1e-6)


def test_surroundings_are_kept_of_scenes_that_are_done(tmp_path: Path) -> None:
    found, _ = placed(20)
    parts = Parts(tmp_path, "0" * 64)
    parts.keep("a.tif", found)
    taken = parts.taken(["a.tif"])["a.tif"]
    np.testing.assert_array_equal(taken.surroundings, found.surroundings)
    assert taken.scenery is None
