from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from siamese_sat.evaluation.tables import BOX
from siamese_sat.evaluation.verdict import OTHER, judge
from tests.evaluation.helpers import found, square, truth_of


def test_found_missed_and_false_by_hand() -> None:
    truth = pd.concat(
        [
            truth_of(square(0), square(50), square(100), square(150), square(200, 0, 30), square(300)),
            truth_of(square(0), name="car"),
        ]
    )
    ranked = pd.concat(
        [
            found(
                (square(1), 0.9),  # finds the first object
                (square(400), 0.8),  # nothing there
                (square(50), 0.5),  # finds the second
                (square(0), 0.4),  # finds the first again
                (square(100), 0.2),  # would find the third, below the threshold
                (square(156), 0.35),  # IoU 40 / 160 with the fourth: not enough
                (square(150), 0.1),  # would find the fourth
                (square(215), 0.05),  # within the fifth, which nothing finds
            ),
            found((square(500), 0.1), name="plane"),
        ]
    )
    verdicts = judge(ranked, truth, {"ship": 0.3, "car": 0.3, "plane": 0.3})
    assert list(verdicts) == ["car", "ship"], "of a plane there is neither truth nor a report"
    ship = verdicts["ship"]
    assert ship.counts == {"found": 2, "missed": 4, "false": 3}
    assert ship.found["score"].tolist() == [0.9, 0.5]
    assert ship.found["iou"].tolist() == pytest.approx([90 / 110, 1])
    assert ship.found[OTHER].to_numpy()[0].tolist() == list(square(0))
    # Nothing finds the fifth (large) and the sixth; the fourth is found with 0.1, the third with 0.2.
    assert ship.missed["x_min"].tolist() == [200, 300, 150, 100]
    assert ship.missed["score"].tolist() == pytest.approx([0.05, np.nan, 0.1, 0.2], nan_ok=True)
    assert ship.missed["iou"].tolist() == pytest.approx([100 / 900, 0, 1, 1])
    assert ship.missed[OTHER].to_numpy()[2].tolist() == list(square(150))
    assert ship.false["score"].tolist() == [0.8, 0.4, 0.35]
    assert ship.false["iou"].tolist() == pytest.approx([0, 1, 40 / 160])
    assert verdicts["car"].counts == {"found": 0, "missed": 1, "false": 0}
    assert np.isnan(verdicts["car"].missed["score"].item())


def test_no_more_rows_than_wanted() -> None:
    truth = truth_of(*(square(50 * i) for i in range(9)))
    ranked = found(*((square(50 * i), 0.9 - i / 10) for i in range(5)))
    ship = judge(ranked, truth, {"ship": 0.3}, most=2)["ship"]
    assert (len(ship.found), len(ship.missed), len(ship.false)) == (2, 2, 0)
    assert ship.counts == {"found": 5, "missed": 4, "false": 0}
    assert ship.found[BOX].to_numpy()[1].tolist() == list(square(50))


def test_nothing_found_and_nothing_to_find() -> None:
    assert judge(found(), truth_of(), {}) == {}
    assert judge(found(), truth_of(square(0)), {})["ship"].counts == {"found": 0, "missed": 1, "false": 0}
    assert judge(found((square(0), 0.9)), truth_of(), {"ship": 0.3})["ship"].counts["false"] == 1
