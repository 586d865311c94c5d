from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from siamese_sat.errors import InputError
from siamese_sat.search.index import store as module
from siamese_sat.search.index.build import window_rows
from siamese_sat.search.index.encoder import Encoded
from siamese_sat.search.index.schema import entries_of
from siamese_sat.search.index.store import Probe, Store
from tests.conftest import make_scene, ramp
from tests.search.index.helpers import entry, new_store


def rows(path: Path, number: int, count: int, seed: int = 0, dimensions: int = 8) -> tuple[pa.Table, np.ndarray]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    corner = np.arange(count, dtype=float)[:, None] * np.array([[1.0, 0.0]])
    part = Encoded(np.concatenate([corner, corner + 16], axis=1), np.ones(count), vectors, 16)
    return window_rows(part, number, make_scene(path / "any.tif", ramp(1, 4, 4)), None), vectors


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    store = new_store(tmp_path / "i")
    table, vectors = rows(tmp_path, 1, 50)
    with store.writing():
        store.add_windows(table)
        store.enter_scenes(entry(1, "/a.tif", 50))
    again = Store(str(tmp_path / "i"))
    assert again.exists
    assert again.about()[1] == b"tensors"
    found = again.nearest(vectors[7], 3)
    assert found.x_min[0] == 7
    assert found.similarity[0] == pytest.approx(1, abs=2e-3)  # fp16
    assert found.similarity.is_monotonic_decreasing
    expected = np.sort(vectors @ vectors[7])[::-1][:3]
    assert found.similarity.to_numpy() == pytest.approx(expected, abs=3e-3)
    assert again.nearest(vectors[7], 3, "x_min > 7").x_min.min() > 7
    assert [e.path for e in entries_of(again.scenes())] == ["/a.tif"]


def test_windows_of_a_scene_without_entry_go_at_the_next_writing(tmp_path: Path) -> None:
    store = new_store(tmp_path / "i")
    with store.writing():
        store.add_windows(rows(tmp_path, 1, 5)[0])
        store.enter_scenes(entry(1, "/a.tif", 5))
        store.add_windows(rows(tmp_path, 2, 7)[0])  # and here the process ends
    assert store.count() == 12
    again = Store(str(tmp_path / "i"))
    with again.writing():
        assert again.count() == 5
    assert set(again.nearest(np.ones(8), 20).scene) == {1}


def test_a_removal_cut_short_is_completed(tmp_path: Path) -> None:
    store = new_store(tmp_path / "i")
    with store.writing():
        for number in (1, 2, 3):
            store.add_windows(rows(tmp_path, number, 4)[0])
            store.enter_scenes(entry(number, f"/{number}.tif", 4))
        store.tables["scenes"].delete("scene = 2")  # the entry goes first
    with store.writing():
        assert store.count() == 8
    assert set(store.nearest(np.ones(8), 20).scene) == {1, 3}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    store = new_store(tmp_path / "i")
    code = f"""
from siamese_sat.search.index.lock import only_writer
try:
    with only_writer({str(tmp_path / "i")!r}):
        print("in")
except Exception as error:
    print(error)
"""
    ask = [sys.executable, "-c", code]
    with store.writing():
        assert "another process writes" in subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip() == "in"


def test_an_inverted_index_finds_what_a_scan_finds_also_in_what_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "i", 16)
    table, vectors = rows(tmp_path, 1, 1500, dimensions=16)
    more, later = rows(tmp_path, 2, 200, seed=1, dimensions=16)
    with store.writing():
        store.add_windows(table)
        store.enter_scenes(entry(1, "/a.tif", 1500))
        assert store.finish(exact_below=1000) == "built"
        assert store.indexed() == 1500
        store.add_windows(more)
        store.enter_scenes(entry(2, "/b.tif", 200))
        both = np.concatenate([vectors, later])
        check(store, both, monkeypatch)
        assert store.finish(exact_below=1000) == "extended"
        assert store.indexed() == 1700
        check(store, both, monkeypatch)


def check(store: Store, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    similar = vectors @ vectors[1600]
    best = set(np.argsort(-similar)[:10])
    for probe in (Probe(partitions=1000, refine=200), Probe(exact=True)):
        found = store.nearest(vectors[1600], 10, None, probe)
        assert (found.scene[0], found.x_min[0]) == (2, 100)
        numbers = (found.scene - 1) * 1500 + found.x_min.astype(int)
        assert found.similarity.to_numpy() == pytest.approx(similar[numbers], abs=4e-3)
        assert best == set(numbers)
    where = "scene = 2 AND x_min < 12"
    few = store.nearest(vectors[1600], 10, where, Probe(partitions=1), narrow=True)
    assert len(few) == 10  # although one partition holds fewer
    assert few.x_min.tolist() == store.nearest(vectors[1600], 10, where, Probe(exact=True)).x_min.tolist()
    monkeypatch.setattr(module, "FEW", 0)  # in the partitions that hold as many of them
    many = Probe(partitions=10, refine=50)
    assert len(store.nearest(vectors[1600], 10, "scene = 2", many, narrow=True)) == 10


def test_an_index_that_has_outgrown_its_partitions_is_made_anew(tmp_path: Path) -> None:
    store = new_store(tmp_path / "i", 16)
    with store.writing():
        store.add_windows(rows(tmp_path, 1, 300, dimensions=16)[0])
        store.enter_scenes(entry(1, "/a.tif", 300))
        assert store.finish(exact_below=300) == "built"
        store.add_windows(rows(tmp_path, 2, 1000, dimensions=16)[0])
        store.enter_scenes(entry(2, "/b.tif", 1000))
        assert store.finish(exact_below=300) == "rebuilt"


def test_bytes_of_a_large_table_stay_within_bounds(tmp_path: Path) -> None:
    store = new_store(tmp_path / "i", 128)
    with store.writing():
        store.add_windows(rows(tmp_path, 1, 4000, dimensions=128)[0])
        store.enter_scenes(entry(1, "/a.tif", 4000))
        before = store.tables.bytes()
        assert before is not None
        # Vectors are 256; all other columns together take little.
        assert before / 4000 < 300


def test_no_index_and_something_else(tmp_path: Path) -> None:
    assert not Store(str(tmp_path / "nothing")).exists
    assert not (tmp_path / "nothing").exists()  # looking leaves nothing behind
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"), Store(str(tmp_path / "file")).writing():
        pass


def test_entries_are_typed_rows() -> None:
    frame = pd.DataFrame(
        {"scene": [1], "path": ["a"], "windows": [2], "size": [3], "modified": [4], "header": ["h"], "about": ["{}"]}
    )
    assert entries_of(frame)[0].windows == 2
