"""Workers by Ray, some of which are killed."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from siamese_sat.errors import InputError
from siamese_sat.scaleout import cluster
from siamese_sat.scaleout.cluster import RayPool, Share, ray_module
from siamese_sat.scaleout.pool import Item, Work
from siamese_sat.search.run import Workers, search_scenes
from tests.scaleout.conftest import World
from tests.scaleout.helpers import Deadly, Meeting, Number, Square
from tests.search.index.helpers import filled_index

if find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)
ray = ray_module()  # by our own way in: what Ray says is settled when it is imported
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    with RayPool(None, Share(1, 1, 2), gpus_wanted=False) as found:
        yield found
    assert not ray.is_initialized()


@dataclass
class Killing:
    """A pool one of whose workers is killed when so many items are done."""

    pool: RayPool
    after: int

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        for count, done in enumerate(self.pool.run(work, items), 1):
            if count == self.after:
                ready = list(self.pool.processes.values())  # the other may still be starting
                os.kill(ready[count % len(ready)], signal.SIGKILL)
            yield done


def test_items_are_shared_and_those_that_fail_are_told(pool: RayPool) -> None:
    found = dict(pool.run(Square(bad=(2,), seconds=0.1), list(map(Number, range(8)))))
    assert sorted(found) == list(range(8))
    assert str(found[2]) == "number 2 is bad."
    assert [found[n][0] for n in range(8) if n != 2] == [n * n for n in range(8) if n != 2]
    assert {found[n][1] for n in range(8) if n != 2} <= set(pool.processes.values()) - {os.getpid()}


def test_an_item_whose_worker_dies_is_done_again(
    pool: RayPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = list(pool.run(Square(deadly=(3,), once=tmp_path / "died", seconds=0.05), list(map(Number, range(8)))))
    assert sorted((n, value) for n, (value, _) in found) == [(n, n * n) for n in range(8)], "each once"
    assert [r.getMessage() for r in caplog.records] == ["A worker died at number 3; the item is done again."]


def test_an_item_that_kills_two_workers_is_left_out(pool: RayPool) -> None:
    found = dict(pool.run(Square(deadly=(3,)), list(map(Number, range(8)))))
    assert isinstance(found[3], InputError)
    assert str(found[3]).startswith("number 3: its worker died 2 times")
    assert "\n" not in str(found[3])
    assert [found[n][0] for n in range(8) if n != 3] == [n * n for n in range(8) if n != 3]


@pytest.mark.parametrize("fault", ["has no place", "dies at once"])
def test_an_item_does_not_wait_for_the_worker_that_died_at_it(
    pool: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    both = [Number(0), Number(1)]
    list(pool.run(Meeting(Square(), tmp_path, {0: "1", 1: "0"}), both))  # two workers are there
    work = Meeting(Square(deadly=(0,), once=tmp_path / "died"), tmp_path, {0: "the other is idle"})
    hired = []

    def faulty() -> Any:  # noqa: ANN401 - Ray's handle
        monkeypatch.setattr(cluster, "PATIENCE", 20.0)
        cores, device = (1e6, "cpu") if fault == "has no place" else (0, "no such device")
        hired.append(ray.remote(cluster.Worker).options(num_cpus=cores).remote(device, 1))
        return hired[-1]

    def in_vain(doing: object) -> None:
        pytest.fail("An item waits, and so does a worker.")

    monkeypatch.setattr(pool, "_actor", faulty)
    monkeypatch.setattr(pool, "_tell_of_waiting", in_vain)
    found = pool.run(work, both)
    try:
        assert next(found)[0] == 1
        (tmp_path / "the other is idle").touch()
        assert [(n, value) for n, (value, _) in found] == [(0, 0)]
    finally:
        for actor in hired:
            ray.kill(actor)  # the next run hires another


@pytest.mark.parametrize("way", ["template", "window"])
@pytest.mark.parametrize("world", ["small", "by_openvino"])
def test_the_rows_are_those_of_one_process(pool: RayPool, request: pytest.FixtureRequest, world: str, way: str) -> None:
    small: World = request.getfixturevalue(world)
    method = small.template() if way == "template" else small.window()
    here = search_scenes(small.scenes, method, {"thing": 0.0}, 0.1)
    there = search_scenes(small.scenes, method, {"thing": 0.0}, 0.1, Workers(pool, 0.05))
    assert len(here.detections) > 3
    pd.testing.assert_frame_equal(here.detections, there.detections, check_exact=True)


def test_ten_searches_in_which_a_worker_is_killed(
    pool: RayPool, small: World, capfd: pytest.CaptureFixture[str]
) -> None:
    method = Deadly(small.template(), seconds=0.2)
    here = search_scenes(small.scenes, method, {"thing": 0.0}, 0.1)
    for number in range(10):
        there = search_scenes(small.scenes, method, {"thing": 0.0}, 0.1, Workers(Killing(pool, 1 + number % 6)))
        assert not there.failed
        pd.testing.assert_frame_equal(here.detections, there.detections, check_exact=True)
    said = capfd.readouterr()
    assert "raylet" not in said.out + said.err


def test_a_scene_that_kills_its_workers_is_reported_and_the_others_are_searched(pool: RayPool, small: World) -> None:
    method = Deadly(small.template(), "4.tif")
    found = search_scenes(small.scenes, method, {"thing": 0.0}, 0.1, Workers(pool))
    assert list(found.failed) == [small.scenes["4.tif"].path]
    rest = {name: scene for name, scene in small.scenes.items() if name != "4.tif"}
    expected = search_scenes(rest, method, {"thing": 0.0}, 0.1)
    pd.testing.assert_frame_equal(found.detections, expected.detections, check_exact=True)


def test_an_index_is_filled_as_by_one_process(pool: RayPool, tmp_path: Path) -> None:
    tables = []
    for name, workers in (("here", None), ("there", Workers(pool, 0.001))):
        tables.append(filled_index(tmp_path / name, tmp_path / "scenes", workers))
    assert len(tables[0]) > 50
    assert tables[0].equals(tables[1])


def test_no_room_is_one_sentence(pool: RayPool) -> None:
    with pytest.raises(InputError, match="no room for a worker of 1000 core"):
        RayPool(None, Share(1000))
    assert ray.is_initialized(), "that of the others is left to them"
