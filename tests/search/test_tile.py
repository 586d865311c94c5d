"""Tiles read by several threads are those that one reads, in the same order."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.search import window as grid
from siamese_sat.search.tile import Failure, Job, StoredTile, read_tiles
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY
from tests.search.test_stream import damaged

BLOCKS = {"tiled": True, "blockxsize": 64, "blockysize": 64}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("axis_tiles", "dense_tiles"):
        monkeypatch.setattr(grid, name, partial(getattr(grid, name), tile=128))


def noise(folder: Path, name: str, height: int, width: int, **options: object) -> Scene:
    pixels = np.random.default_rng(0).integers(500, 5000, (4, height, width)).astype(np.uint16)
    return make_scene(folder / f"{name}.tif", pixels, **{**BLOCKS, **options})


def half_empty(folder: Path) -> Scene:
    """The middle tiles of its rows hold nothing."""
    pixels = np.random.default_rng(3).integers(500, 5000, (4, 300, 500)).astype(np.uint16)
    pixels[:, :, 100:420] = 0
    return make_scene(folder / "half.tif", pixels, nodata=0, **BLOCKS)


def read(jobs: list[Job], around: int | None, readers: int) -> list[StoredTile | Failure]:
    return list(read_tiles(jobs, lambda _: RADIOMETRY, 64, 32, 0.5, around=around, readers=readers))


@pytest.mark.parametrize("around", [None, 1])
@pytest.mark.parametrize("readers", [2, 3, 5])
def test_the_same_whoever_reads(tmp_path: Path, around: int | None, readers: int) -> None:
    spoilt = damaged(tmp_path, "spoilt")
    lost = noise(tmp_path, "lost", 200, 200)
    Path(lost.path).unlink()
    good, half = noise(tmp_path, "good", 333, 470), half_empty(tmp_path)
    rows = noise(tmp_path, "rows", 300, 300, tiled=False, blockysize=16)
    assert not good.whole_rows and not half.whole_rows and rows.whole_rows and spoilt.whole_rows
    jobs = [Job(good, (64, 64)), Job(spoilt, (64, 64)), Job(lost, (64, 64)), Job(half, (64, 64)),
            Job(rows, (64, 64)), Job(spoilt, (96, 96)), Job(good, (50, 80), (1, 3)), Job(good, (400, 400))]  # fmt: skip
    alone, shared = read(jobs, around, 1), read(jobs, around, readers)
    assert [type(t) for t in alone] == [type(t) for t in shared]
    assert {t.job for t in alone if isinstance(t, Failure)} == {1, 2}
    assert sum(t.job == 0 for t in alone) > readers  # each had something to read
    for one, other in zip(alone, shared, strict=True):
        assert one.job == other.job
        if isinstance(one, StoredTile) and isinstance(other, StoredTile):
            assert torch.equal(one.pixels, other.pixels)
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.valid, other.valid)
            np.testing.assert_array_equal(one.seen, other.seen)
            np.testing.assert_array_equal(one.corners, other.corners)
        elif isinstance(one, Failure) and isinstance(other, Failure):
            assert str(one.error) == str(other.error)


def test_each_thread_has_a_handle_of_its_own_and_none_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[SceneReader, int] = {}
    closed: dict[SceneReader, int] = {}
    enter, leave = SceneReader.__enter__, SceneReader.__exit__

    def entered(self: SceneReader) -> SceneReader:
        opened[self] = threading.get_ident()
        return enter(self)

    def left(self: SceneReader, *args: object) -> None:
        closed[self] = threading.get_ident()
        leave(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SceneReader, "__enter__", entered)
    monkeypatch.setattr(SceneReader, "__exit__", left)
    jobs = [Job(noise(tmp_path, "a", 400, 400), (64, 64))]
    before = threading.active_count()
    with closing(read_tiles(jobs, lambda _: RADIOMETRY, 64, 32, 0.5, readers=3)) as tiles:
        next(tiles), next(tiles)
    assert threading.active_count() == before
    assert len(set(opened.values())) == len(opened) > 1
    assert opened == closed


def test_a_file_of_whole_rows_is_read_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    enter = SceneReader.__enter__

    def entered(self: SceneReader) -> SceneReader:
        opened.append(threading.get_ident())
        return enter(self)

    monkeypatch.setattr(SceneReader, "__enter__", entered)
    jobs = [Job(noise(tmp_path, "rows", 400, 400, tiled=False, blockysize=16), (64, 64))]
    assert len(read(jobs, None, 3)) > 3
    assert len(opened) == 1


def test_a_scene_is_normalised_by_one_rule_asked_by_one_at_a_time(tmp_path: Path) -> None:
    inside = threading.Lock()

    def rule(scene: Scene) -> Radiometry:
        if not inside.acquire(blocking=False):
            raise InputError("asked twice at once")
        threading.Event().wait(0.02)
        inside.release()
        return RADIOMETRY

    jobs = [Job(noise(tmp_path, "a", 400, 400), (64, 64))]
    found = list(read_tiles(jobs, rule, 64, 32, 0.5, readers=4))
    assert not [t for t in found if isinstance(t, Failure)]
