from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from siamese_sat.data.scene import Scene
from siamese_sat.search.detect import Candidates
from siamese_sat.search.index.answer import Places, Remembered, Verified, surroundings
from tests.conftest import make_scene, ramp


def hits(*centres: tuple[float, float], side: float = 40) -> pd.DataFrame:
    rows = [(x - 32, y - 32, x + 32, y + 32) for x, y in centres]
    frame = pd.DataFrame(rows, columns=["x_min", "y_min", "x_max", "y_max"], dtype=float)
    return frame.assign(scale=64, width=side, height=side / 2, score=np.linspace(0.9, 0.4, len(frame)), **{"class": 0})


def test_surroundings_hold_the_thing_wherever_the_grid_left_it() -> None:
    places = surroundings(hits((500, 500)), (0, 0, 1000, 1000))
    # 16 of the grid and 5 of the thing's own; 20 more to see.
    assert places.answer.tolist() == [[479, 479, 521, 521]]
    assert places.read.tolist() == [[459, 459, 541, 541]]
    assert surroundings(hits((500, 500)), (0, 0, 1000, 1000), margin=1.0).read.tolist() == [[439, 439, 561, 561]]


def test_surroundings_end_with_the_scene() -> None:
    places = surroundings(hits((10, 990)), (0, 100, 1000, 1000))
    assert places.read.tolist() == [[0, 949, 51, 1000]]


def test_neighbours_are_looked_at_together_and_far_ones_alone() -> None:
    places = surroundings(hits((500, 500), (532, 500), (516, 532), (100, 100), (900, 120)), (0, 0, 1000, 1000))
    assert len(places.read) == 3
    areas = (places.read[:, 2] - places.read[:, 0]) * (places.read[:, 3] - places.read[:, 1])
    assert areas.sum() < 5 * 82**2
    for x, y in ((500, 500), (532, 500), (516, 532), (100, 100), (900, 120)):
        inside = (places.answer[:, :2] <= [x, y]).all(1) & (places.answer[:, 2:] >= [x, y]).all(1)
        assert inside.any()


def test_many_neighbours_become_one() -> None:
    grid = [(x, y) for x in range(100, 900, 32) for y in range(100, 900, 32)]
    assert len(surroundings(hits(*grid), (0, 0, 1000, 1000)).read) == 1


def test_what_is_remembered_has_the_exemplars_size(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", ramp(1, 100, 100))
    method = Remembered(["boat"], {scene.path: hits((50, 50), (60, 60))}, {scene.path: 7})
    part = Candidates.join(list(method.candidates(scene, {"boat": 0.5})))
    assert part.boxes.tolist() == [[30, 40, 70, 60]]
    assert part.regions.tolist() == [[18, 18, 82, 82]]
    assert method.windows(scene) == {"boat": 7}
    other = make_scene(tmp_path / "b.tif", ramp(1, 100, 100))
    assert list(method.candidates(other, {"boat": 0.5})) == []


class Everywhere:
    """Finds something at every tenth pixel of what it is given."""

    classes = ("boat",)

    def windows(self, scene: Scene) -> dict[str, int]:
        return {"boat": 3}

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        x0, y0, x1, y1 = scene.aoi
        x, y = np.meshgrid(np.arange(-(-x0 // 10) * 10, x1, 10.0), np.arange(-(-y0 // 10) * 10, y1, 10.0))
        centre = np.stack([x.ravel(), y.ravel()], axis=1)
        boxes = np.concatenate([centre - 2, centre + 2], axis=1)
        yield Candidates(boxes, boxes, np.zeros(len(boxes), np.int64), np.ones(len(boxes)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([40.0, 40, 60, 60], {(x, y) for x in (40, 50, 60) for y in (40, 50, 60)}),
        # On the scene's left border nothing lies beyond, so that what is seen there counts.
        ([0.0, 40, 20, 60], {(x, y) for x in (0, 10, 20) for y in (40, 50, 60)}),
    ],
)
def test_only_what_lies_in_the_middle_of_what_is_read_counts(
    tmp_path: Path, answer: list[float], expected: set[tuple[int, int]]
) -> None:
    scene = make_scene(tmp_path / "a.tif", ramp(1, 100, 100))
    read = (np.array([answer]) + np.array([-20, -20, 20, 20])).clip(0, 100)
    method = Verified(Everywhere(), {scene.path: Places(read, np.array([answer]))})  # type: ignore[arg-type]
    found = Candidates.join(list(method.candidates(scene, {"boat": 0.5})))
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert {(int(x), int(y)) for x, y in centres} == expected
    assert method.windows(scene) == {"boat": 3}
    other = make_scene(tmp_path / "b.tif", ramp(1, 100, 100))
    assert list(method.candidates(other, {"boat": 0.5})) == []
    assert method.windows(other) == {"boat": 0}
