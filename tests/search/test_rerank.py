from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score

from siamese_sat.data.scene import Scene
from siamese_sat.search import rerank as module
from siamese_sat.search.detect import Candidates
from siamese_sat.search.parts import Parts
from siamese_sat.search.rerank import FEWEST, FLOOR, RIDGE, STANDING, STEEPNESS, Gathered, looks, rerank
from siamese_sat.search.run import search_scenes
from tests.conftest import make_scene

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
    return Candidates(boxes, boxes, number, scores, seen.astype(np.float16)), true, rng.integers(0, 3, count)


@pytest.mark.parametrize("seed", range(5))
def test_what_looks_like_the_others_rises(seed: int) -> None:
    found, true, scenes = things(seed)
    again = rerank(found, scenes, 2.0)
    before, after = (average_precision_score(true, c.scores) for c in (found, again))
    assert after > before + 0.02
    np.testing.assert_array_equal(again.boxes, found.boxes)
    assert ((again.scores >= 0) & (again.scores <= 1)).all()


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


def test_without_looks_or_weight_or_enough_of_them_nothing_changes() -> None:
    found, _, scenes = things(3)
    assert rerank(found, scenes, 0.0) is found
    blind = Candidates(found.boxes, found.regions, found.classes, found.scores)
    assert rerank(blind, scenes, 2.0) is blind
    few = found.at(np.flatnonzero(found.scores >= FLOOR)[: FEWEST - 1])
    np.testing.assert_array_equal(rerank(few, scenes[: FEWEST - 1], 2.0).scores, few.scores)
    none = found.at(np.empty(0, np.int64))
    assert len(rerank(none, scenes[:0], 2.0).scores) == 0


def test_the_unlikely_say_nothing_and_never_rise() -> None:
    found, _, scenes = things(4)
    kept = found.scores >= 0.3
    scores = np.where(kept, found.scores, FLOOR * found.scores)
    some = Candidates(found.boxes, found.regions, found.classes, scores, found.looks)
    again = rerank(some, scenes, 2.0)
    assert (again.scores[~kept] <= scores[~kept]).all()
    np.testing.assert_allclose(again.scores[kept], rerank(some.at(kept), scenes[kept], 2.0).scores, rtol=1e-9)


def test_the_more_there_are_the_more_is_asked_of_each() -> None:
    """Twice as many candidates, each as likely as before: its odds are halved."""

    def odds(count: int) -> float:
        side = np.arange(count)[:, None] * 1000.0
        boxes = np.concatenate([side, side, side + SIDE, side + SIDE], axis=1)
        same = np.full((count, 16), 0.25, np.float16)
        found = Candidates(boxes, boxes, np.zeros(count, np.int64), np.full(count, 0.6), same)
        again = rerank(found, np.zeros(count, np.int64), 2.0).scores
        assert np.ptp(again) < 1e-9
        return float(again[0] / (1 - again[0]))

    assert odds(400) == pytest.approx((0.6 / 0.4) ** STEEPNESS * 0.3 / 0.7)
    assert odds(800) == pytest.approx(odds(400) / 2**STEEPNESS)
    assert odds(40) == pytest.approx(odds(80)), "of few no less is asked"


def test_no_candidate_is_its_own_witness() -> None:
    """What is said of each is what a regression of all others predicts."""
    found, _, scenes = things(5, 30)
    assert found.looks is not None
    moved = module._moved(found.scores, found.looks, found.boxes, scenes, 1.0)
    logit = np.log(found.scores / (1 - found.scores))
    standing = module._standing(found.scores, found.boxes, scenes)
    features = np.concatenate([found.looks.astype(float), np.sqrt(STANDING) * standing], axis=1)
    for i in range(30):
        others = np.arange(30) != i
        kernel = features[others] @ features[others].T + RIDGE * np.eye(29)
        predicted = features[i] @ features[others].T @ np.linalg.solve(kernel, (logit - logit.mean())[others])
        assert moved[i] - logit[i] == pytest.approx(predicted, abs=1e-9)


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
    same = np.full((24, 16), 0.25, np.float16)
    again = rerank(Candidates(boxes, boxes, np.zeros(24, np.int64), scores, same), np.zeros(24, np.int64), 2.0)
    assert again.scores[0] >= again.scores[12]
    moved = module._moved(scores, same, boxes, np.zeros(24, np.int64), 2.0)
    assert moved[0] > moved[12]
    # In another scene nothing stands beside it.
    apart = module._standing(scores, boxes, np.arange(24))
    assert np.ptp(apart[:, :3]) == 0


def test_looks_are_of_unit_length_and_blind_to_what_lies_evenly() -> None:
    cells = torch.randn(3, 80, 9, 9, generator=torch.Generator().manual_seed(0))
    seen = looks(cells, 1.0)
    assert seen.shape == (3, module.GRID**2 * module.DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(seen.astype(float), axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(looks(cells + torch.randn(3, 80, 1, 1), 1.0).astype(float), seen, atol=2e-3)
    assert not np.allclose(looks(cells + 3, 0.0), looks(cells, 0.0), atol=0.01)
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
            order = np.lexsort(one.boxes.T)
            one.scores[:], one.boxes[:], one.classes[:] = one.scores[order], one.boxes[order], one.classes[order]
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
    order = np.argsort(which, kind="stable")
    expected = rerank(found.at(order), which[order], 2.0)
    concluded = Candidates.join(list(gathered.conclude(["0", "1", "2"]).values()))
    np.testing.assert_array_equal(concluded.scores, expected.scores)


class Planted:
    """A method that knows what is where, and says so as far as it is asked."""

    classes = ["boat"]  # noqa: RUF012

    def __init__(self, weight: float, places: Mapping[str, Candidates]) -> None:
        self.rerank, self.places = weight, places

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
        search_scenes(scenes, Planted(weight, places), {"boat": asked}, 1.0).detections  # type: ignore[arg-type]
        for weight, asked in ((0.0, least), (2.0, 0.0), (2.0, least))
    )
    assert len(all_of) == 60
    columns = ["x_min", "y_min", "filename"]
    reaching = all_of[all_of.score >= least].reset_index(drop=True)
    assert reaching[columns].equals(some[columns])
    np.testing.assert_allclose(reaching.score, some.score, rtol=1e-9)
    # Some that would not have reached the threshold by themselves do now, or the other way round.
    assert set(zip(plain.x_min, plain.y_min, strict=True)) != set(zip(some.x_min, some.y_min, strict=True))


def test_looks_are_kept_of_scenes_that_are_done(tmp_path: Path) -> None:
    found, _, _ = things(8)
    parts = Parts(tmp_path, "0" * 64)
    parts.keep("a.tif", found)
    parts.keep("b.tif", Candidates(found.boxes, found.regions, found.classes, found.scores))
    taken = parts.taken(["a.tif", "b.tif"])
    assert taken["a.tif"].looks is not None
    np.testing.assert_array_equal(taken["a.tif"].looks, found.looks)
    assert taken["a.tif"].looks.dtype == np.float16
    assert taken["b.tif"].looks is None


def test_candidates_joined_keep_their_looks_where_all_have_some() -> None:
    found, _, _ = things(9)
    first, second = found.at(np.arange(10)), found.at(np.arange(10, 60))
    joined = Candidates.join([Candidates.join([]), first, second])
    assert joined.looks is not None
    np.testing.assert_array_equal(joined.looks, found.looks)
    blind = Candidates(second.boxes, second.regions, second.classes, second.scores)
    assert Candidates.join([first, blind]).looks is None
