"""Sharing out what an interrupted search has left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from siamese_sat.data.scene import Scene
from siamese_sat.scaleout.local import Processes
from siamese_sat.scaleout.pool import Item, Pool, Work
from siamese_sat.search.parts import Parts
from siamese_sat.search.run import Workers, search_scenes
from tests.scaleout.conftest import CPU, World
from tests.scaleout.helpers import Backwards

QUESTION = "0" * 64
SPLIT = 0.02


@dataclass
class Ending:
    """A pool that ends before all is done, and says what it was asked for."""

    pool: Pool
    after: int
    asked: list[Item] = field(default_factory=list)

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        self.asked += items
        for count, done in enumerate(self.pool.run(work, items)):
            if count == self.after:
                raise KeyboardInterrupt
            yield done


def some(small: World, count: int) -> dict[str, Scene]:
    return dict(list(small.scenes.items())[:count])


def kept(parts: Parts, scenes: Mapping[str, Scene]) -> set[str]:
    return set(parts.taken(scenes))


@pytest.mark.parametrize("way", [pytest.param("template", marks=pytest.mark.slow), "window"])
def test_only_what_is_left_is_shared_out(small: World, tmp_path: Path, way: str) -> None:
    method = small.template() if way == "template" else small.window()
    scenes, parts = some(small, 3), Parts(tmp_path / "parts", QUESTION)
    least = dict.fromkeys(method.classes, 0.0)
    whole = search_scenes(scenes, method, least, 0.1)
    first, then = Ending(Backwards(), 4), Ending(Backwards(), 99)
    with pytest.raises(KeyboardInterrupt):
        search_scenes(scenes, method, least, 0.1, Workers(first, SPLIT), parts)
    # Backwards, and of the scene before the last not all of its parts had come.
    assert kept(parts, scenes) == {"2.tif"}
    found = search_scenes(scenes, method, least, 0.1, Workers(then, SPLIT), parts)
    assert {item.path for item in then.asked} == {scenes[name].path for name in ("0.tif", "1.tif")}
    assert (found.taken, found.compared) == (1, whole.compared)
    pd.testing.assert_frame_equal(found.detections, whole.detections, check_exact=True)
    assert kept(parts, scenes) == set(scenes)


def test_begun_by_workers_and_ended_here(small: World, tmp_path: Path) -> None:
    method, scenes, parts = small.window(), some(small, 3), Parts(tmp_path / "parts", QUESTION)
    whole = search_scenes(scenes, method, {"thing": 0.0}, 0.1)
    with pytest.raises(KeyboardInterrupt):
        search_scenes(scenes, method, {"thing": 0.0}, 0.1, Workers(Ending(Backwards(), 2)), parts)
    assert kept(parts, scenes) == {"1.tif", "2.tif"}
    found = search_scenes(scenes, method, {"thing": 0.0}, 0.1, None, parts)
    assert found.taken == 2
    pd.testing.assert_frame_equal(found.detections, whole.detections, check_exact=True)


@pytest.mark.slow
def test_processes_share_what_is_left(small: World, tmp_path: Path) -> None:
    method, scenes, parts = small.template(), some(small, 3), Parts(tmp_path / "parts", QUESTION)
    whole = search_scenes(scenes, method, {"thing": 0.0}, 0.1)
    pool = Processes([CPU, CPU])
    with pytest.raises(KeyboardInterrupt):
        search_scenes(scenes, method, {"thing": 0.0}, 0.1, Workers(Ending(pool, 2)), parts)
    assert len(kept(parts, scenes)) == 2
    found = search_scenes(scenes, method, {"thing": 0.0}, 0.1, Workers(pool), parts)
    assert found.taken == 2
    pd.testing.assert_frame_equal(found.detections, whole.detections, check_exact=True)
