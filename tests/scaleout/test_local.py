"""Processes of this machine; they start slowly."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from siamese_sat.errors import InputError
from siamese_sat.scaleout.local import Processes
from siamese_sat.search.run import Workers, search_scenes
from tests.scaleout.conftest import CPU, World
from tests.scaleout.helpers import Number, Square
from tests.search.index.helpers import filled_index

pytestmark = pytest.mark.slow


def test_two_processes_share_the_items() -> None:
    found = dict(
        Processes([CPU, CPU]).run(Square(torch.tensor([3.0]), bad=(2,), seconds=0.2), list(map(Number, range(8))))
    )
    assert sorted(found) == list(range(8))
    assert isinstance(found[2], InputError)
    done = [r for n, r in found.items() if n != 2]
    assert sorted(value for value, _ in done) == [3 * n * n for n in range(8) if n != 2]
    assert len({process for _, process in done}) <= 2, "one may have done all while the other started"
    assert os.getpid() not in {process for _, process in done}


def test_a_process_that_dies_is_one_sentence() -> None:
    with pytest.raises(InputError, match="memory"):
        list(Processes([CPU]).run(Square(deadly=(1,)), list(map(Number, range(3)))))


def test_the_rows_are_those_of_one_process(small: World) -> None:
    method = small.template()
    here = search_scenes(small.scenes, method, {"thing": 0.0}, 0.1)
    there = search_scenes(small.scenes, method, {"thing": 0.0}, 0.1, Workers(Processes([CPU, CPU]), 0.05))
    pd.testing.assert_frame_equal(here.detections, there.detections, check_exact=True)


def test_an_index_is_filled_as_by_one_process(tmp_path: Path) -> None:
    tables = []
    for name, workers in (("here", None), ("there", Workers(Processes([CPU, CPU]), 0.001))):
        tables.append(filled_index(tmp_path / name, tmp_path / "scenes", workers))
    assert len(tables[0]) > 50
    assert tables[0].equals(tables[1])
