from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from siamese_sat.data.scene import Scene
from siamese_sat.search.detect import Candidates, suppress
from siamese_sat.search.run import search_scenes
from siamese_sat.search.voting import HEARD, POWER, heard, vote
from tests.conftest import make_scene

BOX = np.array([[10.0, 20.0, 30.0, 60.0]])


def test_a_box_that_stands_alone_stays_what_it_is() -> None:
    far = np.array([[200.0, 20.0, 220.0, 60.0]])
    found = vote(BOX, np.array([0.7]), far, np.array([0.9]), 0.2)
    np.testing.assert_allclose(found, BOX, atol=1e-9)
    assert vote(np.empty((0, 4)), np.empty(0), BOX, np.array([0.7]), 0.2).shape == (0, 4)
    np.testing.assert_array_equal(vote(BOX, np.array([0.7]), np.empty((0, 4)), np.empty(0), 0.2), BOX)


def test_of_two_as_sure_the_mean_centre_and_the_geometric_mean_of_the_sides() -> None:
    other = np.array([[12.0, 20.0, 28.0, 80.0]])
    found = vote(BOX, np.array([0.6]), other, np.array([0.6]), 0.2)[0]
    assert (found[0] + found[2]) / 2 == pytest.approx(20)
    assert (found[1] + found[3]) / 2 == pytest.approx((40 + 50) / 2)
    assert found[2] - found[0] == pytest.approx(np.sqrt(20 * 16))
    assert found[3] - found[1] == pytest.approx(np.sqrt(40 * 60))


def test_the_less_sure_are_heard_less_and_the_unsure_not_at_all() -> None:
    moved = BOX + np.array([4, 0, 4, 0])
    odds = 0.5  # of the other, those of the box being 1
    found = vote(BOX, np.array([0.5]), moved, np.array([odds / (1 + odds)]), 0.2)
    weight = odds**POWER
    assert found[0, 0] - 10 == pytest.approx(4 * weight / (1 + weight))
    unsure = HEARD * 0.99
    found = vote(BOX, np.array([0.5]), moved, np.array([unsure / (1 + unsure)]), 0.2)
    np.testing.assert_allclose(found, BOX)
    # One that is surer, and went for the sake of a third, is heard as the box itself.
    found = vote(BOX, np.array([0.5]), moved, np.array([1.0]), 0.2)
    assert found[0, 0] == pytest.approx(12)


def test_what_overlaps_less_than_asked_is_not_heard() -> None:
    moved = BOX + np.array([10, 0, 10, 0])  # IoU 1/3
    score = np.array([0.6])
    assert vote(BOX, score, moved, score, 0.34)[0, 0] == pytest.approx(10)
    assert vote(BOX, score, moved, score, 0.33)[0, 0] == pytest.approx(15)


@pytest.mark.parametrize("nms_iou", [0.1, 0.35, 0.5, 1.0])
def test_things_that_stand_close_do_not_merge(nms_iou: float) -> None:
    """However much overlap is allowed to two of them, neither is heard of the other."""
    boxes = np.array([[0.0, 0, 100, 100], [50.0, 0, 150, 100]])
    found = suppress(Candidates(boxes, boxes, np.zeros(2, np.int64), np.array([0.6, 0.6])), nms_iou, 0.2)
    assert len(found.boxes) == (1 if nms_iou == 0.1 else 2)
    if nms_iou > 0.1:
        np.testing.assert_array_equal(np.sort(found.boxes[:, 0]), [0, 50])


def test_the_order_of_candidates_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 100, (300, 2)), rng.uniform(10, 30, (300, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    one = Candidates(boxes, boxes, rng.integers(0, 2, 300), rng.uniform(0, 1, 300))
    first = suppress(one, 0.1, 0.2)
    turn = rng.permutation(300)
    second = suppress(Candidates(*(v[turn] for v in (one.boxes, one.regions, one.classes, one.scores))), 0.1, 0.2)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    plain = suppress(one, 0.1)
    np.testing.assert_array_equal(plain.scores, first.scores)
    np.testing.assert_array_equal(plain.regions, first.regions)
    assert np.abs(plain.boxes - first.boxes).max() > 1


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3, 0.99, 1.0])
def test_what_is_heard_has_a_part_of_the_thresholds_odds(threshold: float) -> None:
    found = heard(threshold)
    if threshold < 1:
        assert found / (1 - found) == pytest.approx(HEARD * threshold / (1 - threshold))
    else:
        assert found == 1


class Planted:
    """A method that finds one thing at many places, as far as it is asked for them."""

    vote_iou = 0.2
    classes = ["boat"]  # noqa: RUF012

    def windows(self, scene: Scene) -> dict[str, int]:
        return {"boat": 1}

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        shift = np.arange(20)[:, None] * [1.0, 0, 1.5, 0]
        scores = np.linspace(0.5, 0.02, 20)
        keep = scores >= thresholds["boat"]
        boxes = (np.array([10.0, 10, 40, 40]) + shift)[keep]
        yield Candidates(boxes, boxes, np.zeros(len(boxes), np.int64), scores[keep])


def test_a_threshold_changes_no_box_that_reaches_it(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", np.ones((4, 90, 90), "uint16"))
    all_of, some = (
        search_scenes({"a.tif": scene}, Planted(), {"boat": least}, 0.1).detections  # type: ignore[arg-type]
        for least in (0.0, 0.4)
    )
    assert len(some) == 1
    assert some.iloc[0].x_min > 10.2, "those below the threshold are heard"
    np.testing.assert_array_equal(some.iloc[:, :4].to_numpy(float), all_of.iloc[:1, :4].to_numpy(float))
