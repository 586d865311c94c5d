from __future__ import annotations

import pandas as pd
import pytest

from siamese_sat.evaluation import matching
from siamese_sat.evaluation.matching import match, missed, nearest
from tests.evaluation.helpers import crowd, found, square, truth_of


def test_match_prefers_overlap_and_stays_in_image_and_class() -> None:
    truth = pd.concat([truth_of(square(0), square(4), square(90)), truth_of(square(0), file="b.tif")])
    detections = pd.concat(
        [found((square(3), 0.5), (square(2), 0.6)), found((square(0), 0.7), name="car", file="b.tif")]
    )
    # The 0.6 goes first: IoU with both is 80 / 120, the later row is taken as COCO does; then 0.5 (IoU 0.54).
    matched = match(detections, truth)
    assert matched["truth_index"].tolist() == [0, 1, -1]
    assert matched["hit"].tolist() == [True, True, False]
    assert missed(matched, truth)[["x_min", "filename"]].to_numpy().tolist() == [[90, "a.tif"], [0, "b.tif"]]
    # At 0.7 the 0.6 finds nothing, which leaves the second object to the 0.5 (IoU 90 / 110).
    assert match(detections, truth, iou=0.7)["truth_index"].tolist() == [1, -1, -1]


def test_nearest_is_the_other_that_is_overlapped_most() -> None:
    truth = pd.concat([truth_of(square(0), square(4), square(90)), truth_of(square(0), file="b.tif")])
    boxes = pd.concat([found((square(3), 0.5), (square(60), 0.6)), found((square(0), 0.7), name="car")])
    index, iou = nearest(boxes, truth)
    assert index.tolist() == [1, -1, -1]
    assert iou.tolist() == pytest.approx([90 / 110, 0, 0])
    assert nearest(boxes.head(0), truth)[0].size == 0
    assert nearest(boxes, truth.head(0))[0].tolist() == [-1, -1, -1]


def test_large_tables_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    detections, truth = crowd(300, 80, 2, 0)
    whole, near = match(detections, truth), nearest(detections, truth)
    assert 0 < whole["hit"].sum() < 80
    monkeypatch.setattr(matching, "BLOCK", 100)
    pd.testing.assert_frame_equal(match(detections, truth), whole)
    assert nearest(detections, truth)[0].tolist() == near[0].tolist()


def test_boxes_without_an_area_match_nothing() -> None:
    flat = (3.0, 3.0, 3.0, 9.0)
    assert match(found((flat, 0.9)), truth_of(flat))["hit"].tolist() == [False]
