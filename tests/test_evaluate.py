import builtins
from typing import Any

import numpy as np
import pandas as pd
import pytest

from siamese_sat.errors import InputError
from siamese_sat.evaluate import Curve, evaluate
from siamese_sat.evaluation.coco import coco_average_precision
from siamese_sat.evaluation.matching import match, missed
from tests.evaluation.helpers import crowd, found, square, truth_of

IMAGES = {"a.tif": (1000, 1000), "b.tif": (1000, 1000)}  # 2 Mpx


def hundred_and_one_points(curve: Curve) -> float:
    """COCO's average precision from a curve, written from its definition."""
    grid = [curve.precision[curve.recall >= r - 1e-12] for r in np.linspace(0, 1, 101)]
    return float(np.mean([points.max() if len(points) else 0.0 for points in grid]))


def test_perfect_detections() -> None:
    truth = truth_of(square(0), square(50), square(100))
    entry = evaluate(truth.assign(score=[0.9, 0.8, 0.7]), truth, IMAGES).per_class["ship"]
    assert (entry.ap50, entry.ap, entry.ap_centre, entry.best_f1) == pytest.approx((1, 1, 1, 1))
    assert (entry.precision, entry.recall, entry.f1, entry.recall_at_1_fp) == (1, 1, 1, 1)
    assert (entry.objects, entry.detections, entry.best_threshold) == (3, 3, 0.7)


def test_mixed_case_by_hand() -> None:
    # Best first: hit, miss, hit, miss; 4 objects. Precision 1, 1/2, 2/3, 1/2 at recall 1/4, 1/4, 1/2, 1/2.
    truth = truth_of(square(0), square(50), square(100), square(150))
    detections = found((square(0), 0.9), (square(300), 0.8), (square(50), 0.7), (square(400), 0.2))
    entry = evaluate(detections, truth, IMAGES).per_class["ship"]
    np.testing.assert_allclose(entry.curve.precision, [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(entry.curve.recall, [1 / 4, 1 / 4, 1 / 2, 1 / 2])
    np.testing.assert_allclose(entry.curve.score, [0.9, 0.8, 0.7, 0.2])
    # 101 points: recall 0..0.25 (26 points) at precision 1, 0.26..0.5 (25 points) at 2/3.
    assert entry.ap50 == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert entry.ap_centre == pytest.approx(1 / 4 * 1 + 1 / 4 * 2 / 3)
    # F1 is 2 TP / (detections kept + objects): 2/5, 2/6, 4/7, 4/8.
    assert (entry.best_f1, entry.best_threshold) == (pytest.approx(4 / 7), 0.7)
    assert (entry.precision, entry.recall, entry.f1) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    low = evaluate(detections, truth, IMAGES, {"ship": 0.2}).per_class["ship"]
    assert (low.precision, low.recall, low.f1) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    # Scores 0.9, 0.8, 0.7 and 0.2, each in a bin of its own; the first and third are right.
    assert entry.calibration_error == low.calibration_error == pytest.approx((0.1 + 0.8 + 0.3 + 0.2) / 4)
    assert entry.reliability["count"].tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 1, 1]
    high = evaluate(detections, truth, IMAGES, 0.95).per_class["ship"]
    assert (high.precision, high.recall, high.f1) == (0, 0, 0)


@pytest.mark.parametrize(
    ("side", "shift", "ap50", "ap"),
    [
        (3, 1, 1, 0.1),  # IoU 6 / 12: exactly 0.5 is a hit, at the first of ten thresholds
        (10, 3, 1, 0.1),  # 70 / 130 = 0.538
        (10, 4, 0, 0),  # 60 / 140 = 0.429: one pixel further
        (10, 1, 1, 0.7),  # 90 / 110 = 0.818: 0.5 to 0.8
    ],
)
def test_shift(side: float, shift: float, ap50: float, ap: float) -> None:
    truth = truth_of(square(0, side=side))
    detections = found((square(shift, side=side), 0.9))
    entry = evaluate(detections, truth, IMAGES).per_class["ship"]
    assert (entry.ap50, entry.ap, entry.ap_centre) == pytest.approx((ap50, ap, 1))
    assert match(detections, truth)["hit"].tolist() == [ap50 == 1]


def test_half_open_centre() -> None:
    truth = truth_of(square(0))
    for x, expected in ((-5, 1), (5, 0)):  # centres at 0 and at 10: the box is [0, 10)
        assert evaluate(found((square(x), 1)), truth, IMAGES).per_class["ship"].ap_centre == expected


def test_centre_differs_from_overlap() -> None:
    # A 40-pixel window round a 10-pixel object: IoU 100 / 1600, yet it points at the object.
    entry = evaluate(found((square(-15, -15, 40), 0.9)), truth_of(square(0)), IMAGES).per_class["ship"]
    assert (entry.ap50, entry.ap_centre) == (0, 1)


@pytest.mark.parametrize("step", [1, -1])
def test_nearest_centre_wins(step: int) -> None:
    # Both detections (centres x = 4 and x = 12) lie in the large box (centre 10). The better one is nearer to
    # the small box (centre 3), takes it, and leaves the large one.
    truth = truth_of((0, 0, 20, 6), (0, 0, 6, 6))[::step]
    detections = found(((3, 2, 5, 4), 0.9), ((11, 2, 13, 4), 0.8))
    assert evaluate(detections, truth, IMAGES).per_class["ship"].ap_centre == 1


def test_duplicates_are_false() -> None:
    truth = truth_of(square(0), square(50))
    detections = found((square(0), 0.9), (square(1), 0.8), (square(50), 0.7))
    matched = match(detections, truth)
    assert matched["truth_index"].tolist() == [0, -1, 1]
    entry = evaluate(detections, truth, IMAGES).per_class["ship"]
    assert entry.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert entry.ap_centre == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_curve_agrees_with_coco(seed: int) -> None:
    detections, truth = crowd(600, 150, 3, seed)
    images = {f"{i}.tif": (1000, 1000) for i in range(3)}
    for entry in evaluate(detections, truth, images).per_class.values():
        assert hundred_and_one_points(entry.curve) == pytest.approx(entry.ap50, abs=1e-9)
        assert 0 < entry.ap < entry.ap50 < 1


def test_row_order_does_not_matter() -> None:
    detections, truth = crowd(300, 80, 2, 0)
    images = {f"{i}.tif": (1000, 1000) for i in range(2)}
    shuffled = detections.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        evaluate(detections, truth, images).table(), evaluate(shuffled, truth, images).table()
    )


def test_recall_at_one_false_positive_per_megapixel() -> None:
    truth = truth_of(*(square(50 * i) for i in range(4)))
    far = [square(50 * i, 500) for i in range(3)]
    boxes = [square(0), far[0], square(50), far[1], square(100), far[2], square(150)]
    detections = found(*((box, 0.9 - 0.1 * i) for i, box in enumerate(boxes)))
    for images, expected in (
        ({"a.tif": (1000, 1000)}, 2 / 4),  # one may be false: stops before the second
        (IMAGES, 3 / 4),  # an image without truth counts by its area
        ({"a.tif": (1000, 999)}, 1 / 4),
    ):
        assert evaluate(detections, truth, images).per_class["ship"].recall_at_1_fp == expected


def test_equal_scores_are_not_parted() -> None:
    truth = truth_of(square(0), square(50))
    detections = found((square(0), 0.9), (square(50), 0.5), (square(300), 0.5), (square(400), 0.5))
    entry = evaluate(detections, truth, {"a.tif": (1000, 1000)}).per_class["ship"]
    # Stops: 1 kept (F1 2/3, no false), 4 kept (F1 4/6, 2 false); 2 kept would be F1 1 but has no threshold.
    assert (entry.best_f1, entry.best_threshold) == (pytest.approx(2 / 3), 0.9)
    assert entry.recall_at_1_fp == 1 / 2


@pytest.mark.parametrize("none", [found(), pd.DataFrame()])
def test_no_detections(none: pd.DataFrame) -> None:
    truth = truth_of(square(0))
    entry = evaluate(none, truth, IMAGES).per_class["ship"]
    figures = (entry.ap50, entry.ap, entry.ap_centre, entry.f1, entry.recall, entry.best_f1)
    assert figures == (0,) * 6 and entry.recall_at_1_fp == 0
    assert np.isnan(entry.best_threshold) and len(entry.curve.score) == 0
    assert len(missed(match(none, truth), truth)) == 1


def test_no_truth_at_all() -> None:
    evaluation = evaluate(found((square(0), 0.9)), truth_of(), IMAGES)
    assert np.isnan(evaluation.per_class["ship"].ap50) and np.isnan(evaluation.mean["ap"])
    assert evaluate(found(), truth_of(), {}).table().index.tolist() == ["mean"]


def test_mean_and_table() -> None:
    truth = pd.concat([truth_of(square(0)), truth_of(square(50), name="car")])
    detections = pd.concat([found((square(0), 0.9)), found((square(0), 0.9), (square(9), 0.1), name="plane")])
    table = evaluate(detections, truth, IMAGES).table()
    assert table.index.tolist() == ["car", "plane", "ship", "mean"]
    assert table["ap50"].tolist() == pytest.approx([0, np.nan, 1, 0.5], nan_ok=True)
    assert table["ap_centre"].tolist() == pytest.approx([0, np.nan, 1, 0.5], nan_ok=True)
    assert table["f1"].tolist() == pytest.approx([0, np.nan, 1, 0.5], nan_ok=True)
    assert table["calibration_error"].tolist() == pytest.approx([np.nan, np.nan, 0.1, 0.1], nan_ok=True)
    assert table["objects"].tolist() == [1, 0, 1, 2]
    assert table["detections"].tolist() == [0, 2, 1, 3]


def test_more_than_a_hundred_detections_in_an_image() -> None:
    truth = truth_of(*(square(20 * (i % 20), 20 * (i // 20)) for i in range(300)))
    detections = truth.assign(score=np.linspace(0.9, 0.5, 300))
    assert evaluate(detections, truth, IMAGES).per_class["ship"].ap == pytest.approx(1)
    # COCO's own limit reaches a recall of 1/3: the points 0, 0.01, ... 0.33 of 101.
    assert coco_average_precision(detections, truth, 100)["ship"][1] == pytest.approx(34 / 101)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (found((square(0), 0.9), file="c.tif"), "c.tif"),
        (found((square(0), 0.9)).drop(columns="score"), "score"),
        (found((square(0), np.nan)), "finite"),
    ],
)
def test_input_errors(detections: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(detections, truth_of(square(0)), IMAGES)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if name == "faster_coco_eval":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r'pip install "siamese-sat\[evaluate\]"'):
        evaluate(found(), truth_of(square(0)), IMAGES)
