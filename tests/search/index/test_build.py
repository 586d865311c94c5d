from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, open_scene
from siamese_sat.errors import InputError
from siamese_sat.scaleout.pool import Item, Work
from siamese_sat.search.index import build as building
from siamese_sat.search.index.build import build, outdated
from siamese_sat.search.index.embed import Embed, readings
from siamese_sat.search.index.encoder import Encoded
from siamese_sat.search.part import Part
from siamese_sat.search.run import Workers
from siamese_sat.searching import OneForAll
from tests.conftest import NORTH_UP, UTM33, write_scene
from tests.scaleout.helpers import Backwards
from tests.search.index.helpers import RADIOMETRY, Columns, contents, fill, new_store


def noise(path: Path, seed: int, side: int = 48, **options: object) -> Path:
    pixels = np.random.default_rng(seed).integers(1, 255, (1, side, side)).astype("uint8")
    write_scene(path, pixels, **options)
    return path


def expected(paths: list[Path]) -> dict[str, list[tuple[float, ...]]]:
    found = {}
    for path in paths:
        rows = []
        for part in Columns().scene(open_scene(path, [1]), RADIOMETRY):
            for box, valid, vector in zip(part.boxes, part.valid, part.vectors.astype(np.float16), strict=True):
                rows.append((box[1], box[0], 16, valid, *map(float, vector)))
        found[str(path)] = sorted(rows)
    return found


def test_scenes_come_in_once_and_again_when_they_change(tmp_path: Path) -> None:
    a, b, c = (noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("abc"))
    store = new_store(tmp_path / "i")
    first = fill(store, [a, b])
    assert (len(first.added), first.kept, first.windows) == (2, 0, 50)
    again = fill(store, [a, b, c])
    assert (again.added, again.kept) == ([str(c)], 2)
    assert outdated(store, [str(a), str(b), str(c)]) == []
    noise(b, 9)
    os.utime(b, ns=(1, 1))
    changed = fill(store, [a, b, c])
    assert (changed.changed, changed.added, changed.kept) == ([str(b)], [], 2)
    assert contents(store) == expected([a, b, c])
    assert store.count() == 75


def test_small_commits_leave_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("abc")]
    monkeypatch.setattr(building, "ROWS", 7)  # several to a scene
    store = new_store(tmp_path / "i")
    fill(store, paths)
    assert contents(store) == expected(paths)


class Breaking(Columns):
    """Fails in the middle of the second scene, with an error or worse."""

    error: BaseException = InputError("b.tif is damaged.")

    def scene(self, scene: Scene, radiometry: Radiometry, part: Part = (0, 1)) -> Iterator[Encoded]:
        for number, found in enumerate(super().scene(scene, radiometry, part)):
            # Of several parts, the last one.
            if scene.name == "b.tif" and number == (2 if part[1] == 1 else 0) and part[0] == part[1] - 1:
                raise self.error
            yield found


@pytest.mark.parametrize("rows", [3, 50_000])
def test_a_scene_that_fails_leaves_nothing_and_the_others_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    paths = [noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("abc")]
    monkeypatch.setattr(building, "ROWS", rows)
    store = new_store(tmp_path / "i")
    with store.writing():
        done = build(store, [str(p) for p in paths], lambda p: open_scene(p, [1]), Breaking(), lambda s: RADIOMETRY)
    assert list(done.failed) == [str(paths[1])]
    assert contents(store) == expected([paths[0], paths[2]])
    assert store.count() == 50
    fill(store, paths)
    assert contents(store) == expected(paths)


@pytest.mark.parametrize("rows", [3, 50_000])
def test_an_interrupted_run_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    paths = [noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("abc")]
    monkeypatch.setattr(building, "ROWS", rows)
    monkeypatch.setattr(Breaking, "error", KeyboardInterrupt())
    store = new_store(tmp_path / "i")
    with pytest.raises(KeyboardInterrupt), store.writing():
        build(store, [str(p) for p in paths], lambda p: open_scene(p, [1]), Breaking(), lambda s: RADIOMETRY)
    fill(store, paths)
    assert contents(store) == expected(paths)
    assert store.count() == 75


def test_a_path_given_twice_is_one_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = noise(tmp_path / "a.tif", 0)
    monkeypatch.chdir(tmp_path)
    store = new_store(tmp_path / "i")
    assert len(fill(store, [path, "a.tif", "../" + tmp_path.name + "/a.tif"]).added) == 1


def test_a_scene_with_nothing_in_it_is_not_tried_again(tmp_path: Path) -> None:
    path = noise(tmp_path / "tiny.tif", 0, side=10)
    store = new_store(tmp_path / "i")
    fill(store, [path])
    assert store.count() == 0
    assert outdated(store, [str(path)]) == []


def test_windows_know_their_place_and_day(tmp_path: Path) -> None:
    path = noise(tmp_path / "S2_20240229T101010_x.tif", 0, crs=UTM33, transform=NORTH_UP)
    store = new_store(tmp_path / "i")
    fill(store, [path])
    batch = next(iter(store.batches(["map_x_min", "map_x_max", "map_y_min", "map_y_max", "date"])))
    row = batch.to_pylist()[0]
    assert row["date"] == date(2024, 2, 29)
    assert 14.99 < row["map_x_min"] < row["map_x_max"] < 15.01  # 500 km east is the zone's middle
    assert 45 < row["map_y_min"] < row["map_y_max"] < 45.3
    scenes = store.scenes()
    assert scenes.date[0] == date(2024, 2, 29)
    assert scenes.map_x_max[0] > scenes.map_x_min[0]


def test_a_scene_that_does_not_open_takes_nothing_of_the_one_before(tmp_path: Path) -> None:
    """Neither of one that is in the index already, nor of one whose windows still wait to be written."""
    a, b = (noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("ab"))
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"this is no raster")
    store = new_store(tmp_path / "i")
    fill(store, [a])
    assert list(fill(store, [bad, b, bad]).failed) == [str(bad)]
    assert contents(store) == expected([a, b])
    assert list(fill(store, [a, b, bad]).failed) == [str(bad)]
    assert contents(store) == expected([a, b])


@dataclass
class Dying(Backwards):
    """Workers that end with an error when so many scenes are done."""

    after: int = 2
    error: BaseException = field(default_factory=lambda: InputError("A worker process died."))

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        yield from ((number, result) for number, result in sorted(super().run(work, items[: self.after])))
        raise self.error


@pytest.mark.parametrize("error", [InputError("A worker process died."), KeyboardInterrupt()])
def test_scenes_that_were_done_stay_when_the_workers_end(tmp_path: Path, error: BaseException) -> None:
    paths = [noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("abcd")]
    store = new_store(tmp_path / "i")
    with pytest.raises(type(error)), store.writing():
        build(
            store, [str(p) for p in paths], partial(open_scene, bands=[1]), Columns(), OneForAll(RADIOMETRY),
            workers=Workers(Dying(error=error)),
        )  # fmt: skip
    assert contents(store) == expected(paths[:2])
    assert fill(store, paths).kept == 2
    assert contents(store) == expected(paths)


@pytest.mark.parametrize("rows", [7, 50_000])
def test_workers_fill_it_as_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(building, "ROWS", rows)
    paths = [noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("abc")]
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"this is no raster")
    store = new_store(tmp_path / "i")
    every = [str(p) for p in (*paths, bad)]
    with store.writing():
        done = build(
            store, every, partial(open_scene, bands=[1]), Breaking(), OneForAll(RADIOMETRY),
            workers=Workers(Backwards()),
        )  # fmt: skip
    assert done.added == [str(paths[0]), str(paths[2])]
    assert list(done.failed) == [str(paths[1]), str(bad)]
    assert contents(store) == expected([paths[0], paths[2]])
    assert store.scenes().path.tolist() == done.added, "numbered in their order"


@pytest.mark.parametrize("rows", [7, 50_000])
def test_parts_of_large_scenes_fill_it_as_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(building, "ROWS", rows)
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"this is no raster")
    paths = [*(noise(tmp_path / f"{n}.tif", i, 40 + 16 * i) for i, n in enumerate("abcd")), bad]
    here, there = new_store(tmp_path / "here"), new_store(tmp_path / "there")
    pool = Backwards()
    for store, workers in ((here, None), (there, Workers(pool, 0.0025))):
        with store.writing():
            done = build(
                store, [str(p) for p in paths], partial(open_scene, bands=[1]), Columns(), OneForAll(RADIOMETRY),
                workers=workers,
            )  # fmt: skip
        assert list(done.failed) == [str(bad)]
        assert done.windows == store.count()
    assert [item.part for item in pool.asked] == [  # type: ignore[attr-defined]
        (0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4), (0, 1)
    ]  # fmt: skip
    assert contents(there) == expected(paths[:4])
    assert there.rows.equals(here.rows), "in the same order"
    assert there.scenes().equals(here.scenes())


def test_a_scene_whose_last_part_fails_leaves_nothing(tmp_path: Path) -> None:
    paths = [noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("abc")]
    store = new_store(tmp_path / "i")
    with store.writing():
        done = build(
            store, [str(p) for p in paths], partial(open_scene, bands=[1]), Breaking(), OneForAll(RADIOMETRY),
            workers=Workers(Backwards(), 0.0013),
        )  # fmt: skip
    assert done.failed == {str(paths[1]): "b.tif is damaged."}
    assert contents(store) == expected([paths[0], paths[2]])
    assert store.count() == 50


class Sizes(Columns):
    """Two sizes of windows, of which the first tile has no small one."""

    def scene(self, scene: Scene, radiometry: Radiometry, part: Part = (0, 1)) -> Iterator[Encoded]:
        for side in self.windows:
            for number, found in enumerate(super().scene(scene, radiometry, part)):
                if side == 32 or part[0] > 0 or number > 0:
                    yield replace(found, scale=side)


def test_sizes_come_one_after_the_other_whatever_the_parts(tmp_path: Path) -> None:
    path = str(noise(tmp_path / "a.tif", 0))
    embed = Embed(partial(open_scene, bands=[1]), Sizes((16, 32)), OneForAll(RADIOMETRY))

    def rows(workers: Workers | None) -> list[tuple[float, ...]]:
        (reading,) = readings([path], embed, workers)
        found = [replace(part, vectors=part.vectors.astype(np.float16)) for part in reading()[1]]
        return [
            (part.scale, *box, *vector) for part in found for box, vector in zip(part.boxes, part.vectors, strict=True)
        ]

    whole = rows(None)
    assert [int(row[0]) for row in whole] == [16] * 20 + [32] * 25
    assert rows(Workers(Backwards(), 0.0005)) == whole


@dataclass
class Meddling(Backwards):
    """Workers of which one changes a scene when the first part of it is done."""

    path: Path = field(default_factory=Path)

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        for number, result in super().run(work, items):
            yield number, result
            if number == len(items) - 1:
                noise(self.path, 99)


def test_a_scene_that_is_changed_between_its_parts_is_left_out(tmp_path: Path) -> None:
    paths = [noise(tmp_path / f"{n}.tif", i) for i, n in enumerate("ab")]
    store = new_store(tmp_path / "i")
    with store.writing():
        done = build(
            store, [str(p) for p in paths], partial(open_scene, bands=[1]), Columns(), OneForAll(RADIOMETRY),
            workers=Workers(Meddling(path=paths[1]), 0.0013),
        )  # fmt: skip
    assert done.failed == {str(paths[1]): f"{paths[1]} was changed while it was read; index it again."}
    assert contents(store) == expected(paths[:1])
    assert fill(store, paths).added == [str(paths[1])]
    assert contents(store) == expected(paths)
