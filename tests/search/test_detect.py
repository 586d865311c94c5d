from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from siamese_sat.errors import InputError
from siamese_sat.search.detect import COLUMNS, Candidates, best_first, check_threshold, suppress, to_frame


def candidates(*rows: tuple[float, float, float, float, int, float], extent: float = 0) -> Candidates:
    """x_min, y_min, x_max, y_max of the window, class, score; boxes are ``extent`` smaller on each side."""
    table = np.array(rows, dtype=float).reshape(-1, 6)
    inner = np.array([extent, extent, -extent, -extent])
    return Candidates(table[:, :4] + inner, table[:, :4], table[:, 4].astype(np.int64), table[:, 5])


def left(found: Candidates) -> list[tuple[float, float, int, float]]:
    rows = zip(found.regions.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True)
    return [(r[0], r[1], c, s) for r, c, s in rows]


@pytest.mark.parametrize(("dx", "dy"), [(32, 0), (0, 32), (32, 32), (-32, 32)])
def test_half_shifted_windows_suppress_each_other(dx: int, dy: int) -> None:
    """Their IoU is 1/3, on the diagonal 1/7: the original's 0.5 keeps both."""
    two = candidates((100, 100, 164, 164, 0, 0.8), (100 + dx, 100 + dy, 164 + dx, 164 + dy, 0, 0.9))
    assert left(suppress(two, 0.1)) == [(100 + dx, 100 + dy, 0, 0.9)]
    assert len(suppress(two, 0.5).scores) == 2


def test_places_suppress_by_their_windows_and_not_by_their_boxes() -> None:
    """Padding taken off, half-shifted boxes hardly overlap; the windows do."""
    two = candidates((0, 0, 64, 64, 0, 0.8), (32, 32, 96, 96, 0, 0.9), extent=15)
    assert left(suppress(two, 0.1)) == [(32, 32, 0, 0.9)]


def test_neighbours_that_only_touch_stay() -> None:
    two = candidates((0, 0, 64, 64, 0, 0.8), (64, 0, 128, 64, 0, 0.9))
    assert left(suppress(two, 0.0)) == [(64, 0, 0, 0.9), (0, 0, 0, 0.8)]


def test_two_classes_at_one_place_stay() -> None:
    three = candidates((0, 0, 64, 64, 0, 0.8), (0, 0, 64, 64, 1, 0.9), (0, 32, 64, 96, 1, 0.7))
    assert left(suppress(three, 0.1)) == [(0, 0, 1, 0.9), (0, 0, 0, 0.8)]


def test_classes_stay_apart_where_a_window_begins_before_the_scene() -> None:
    """Torchvision shifts classes by the largest coordinate, which parts them only if none is negative."""
    rows = [(-80.0, -80.0, 82.0, 82.0, c, 0.9 - c / 10) for c in range(5)]
    assert len(suppress(candidates(*rows), 0.1).scores) == 5


@pytest.mark.parametrize("count", [50, 3000])
def test_many_boxes_are_treated_like_few(count: int) -> None:
    """Torchvision takes another way beyond 1000 boxes; order and classes must survive it."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 40, (count, 2)) * 32.0
    rows = [
        (x, y, x + 64, y + 64, int(c), float(s))
        for (x, y), c, s in zip(corner.tolist(), rng.integers(0, 3, count), rng.random(count), strict=True)
    ]
    found = suppress(candidates(*rows), 0.1)
    assert (np.diff(found.scores) <= 0).all()
    expected: list[tuple[float, ...]] = []
    for row in sorted(rows, key=lambda r: -r[5]):
        near = (r for r in expected if r[4] == row[4])
        if not any(abs(r[0] - row[0]) <= 32 and abs(r[1] - row[1]) <= 32 for r in near):
            expected.append(row)
    assert left(found) == [(r[0], r[1], r[4], r[5]) for r in expected]


def test_ties_go_by_place_whatever_the_order_of_windows() -> None:
    rows = [(x, y, x + 64, y + 64, 0, 0.5) for y in range(0, 320, 32) for x in range(0, 320, 32)]
    expected = left(suppress(candidates(*rows), 0.1))
    assert expected[:2] == [(0, 0, 0, 0.5), (64, 0, 0, 0.5)]
    for seed in range(5):
        mixed = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        assert left(suppress(candidates(*mixed), 0.1)) == expected


def test_nothing_stays_nothing() -> None:
    empty = suppress(Candidates.join([]), 0.1)
    assert empty.boxes.shape == (0, 4)
    frame = best_first([to_frame(empty, ["boat"], "a.tif", (0, 0, 10, 10))])
    assert list(frame.columns) == COLUMNS
    assert frame.empty
    assert best_first([]).columns.tolist() == COLUMNS


@pytest.mark.parametrize("iou", [-0.1, 1.1, float("nan")])
def test_an_impossible_overlap(iou: float) -> None:
    with pytest.raises(InputError, match="nms_iou"):
        suppress(candidates((0, 0, 1, 1, 0, 0.5)), iou)


def test_parts_are_joined_in_order() -> None:
    joined = Candidates.join([candidates((0, 0, 1, 1, 0, 0.5)), candidates((2, 0, 3, 1, 1, 0.6), (4, 0, 5, 1, 0, 0.4))])
    assert left(joined) == [(0, 0, 0, 0.5), (2, 0, 1, 0.6), (4, 0, 0, 0.4)]


def test_boxes_are_cut_to_what_was_searched() -> None:
    found = candidates((-5, -6, 20, 20, 1, 0.9), (90, 40, 120, 80, 0, 0.8))
    frame = to_frame(found, ["boat", "car"], "a.tif", (2, 0, 100, 60))
    assert frame[COLUMNS].to_numpy().tolist() == [
        [2, 0, 20, 20, "car", "a.tif", 0.9],
        [90, 40, 100, 60, "boat", "a.tif", 0.8],
    ]


def test_best_first_over_scenes_with_ties_in_a_fixed_order() -> None:
    def rows(name: str, *rows: Sequence[object]) -> pd.DataFrame:
        return pd.DataFrame([[*r[:4], r[4], name, r[5]] for r in rows], columns=COLUMNS)

    a = rows("a.tif", (5, 9, 6, 10, "boat", 0.5), (7, 3, 8, 4, "boat", 0.5), (2, 3, 3, 4, "boat", 0.5))
    b = rows("b.tif", (0, 0, 1, 1, "boat", 0.9), (0, 0, 1, 1, "boat", 0.5))
    expected = [("b.tif", 0, 0), ("a.tif", 2, 3), ("a.tif", 7, 3), ("a.tif", 5, 9), ("b.tif", 0, 0)]
    for parts in ([a, b], [b, a], [b, a.iloc[::-1]]):
        frame = best_first(parts)
        assert list(zip(frame.filename, frame.x_min, frame.y_min, strict=True)) == expected
        assert frame.index.tolist() == [0, 1, 2, 3, 4]


def test_thresholds() -> None:
    assert check_threshold(0.4, ["a", "b"]) == {"a": 0.4, "b": 0.4}
    assert check_threshold({"b": 0.7}, ["a", "b"]) == {"a": 0.3, "b": 0.7}
    assert check_threshold(0, ["a"]) == {"a": 0}
    for wrong in (1.2, -0.1, float("nan"), {"a": 2}):
        with pytest.raises(InputError, match=r"between 0 and 1"):
            check_threshold(wrong, ["a", "b"])
    with pytest.raises(InputError, match="'c'"):
        check_threshold({"c": 0.5}, ["a", "b"])
