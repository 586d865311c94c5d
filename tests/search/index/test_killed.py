"""Killed at any moment, and taken up again: the same contents, none missing, none twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from siamese_sat.search.index.store import Store
from tests.search.index.helpers import contents, fill, new_store
from tests.search.index.test_build import noise

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import sys
from siamese_sat.search.index import build
from siamese_sat.search.index.store import Store
from tests.search.index.helpers import fill
build.ROWS = 20
print("begun", flush=True)
fill(Store(sys.argv[1]), sys.argv[2:], exact_below=150)
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    paths = [noise(tmp_path / f"scenes/{n}.tif", n) for n in range(12)]
    whole = new_store(tmp_path / "whole")
    started = time.monotonic()
    fill(whole, paths, exact_below=150)
    takes = max(time.monotonic() - started, 0.5)
    uri = tmp_path / "killed"
    new_store(uri)
    rng = np.random.default_rng(0)
    command = [sys.executable, "-c", CODE, str(uri), *map(str, paths)]
    killed = 0
    for _ in range(20):
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        time.sleep(float(rng.uniform(0, 1.5 * takes)))
        run.send_signal(signal.SIGKILL)
        killed += run.wait() == -signal.SIGKILL
        # What a reader sees in between is whole scenes.
        seen = contents(Store(str(uri)))
        assert all(seen[path] == rows for path, rows in contents(whole).items() if path in seen)
        if len(seen) == len(paths) and rng.random() < 0.7:  # begin anew now and then, so that every part is met
            store = Store(str(uri))
            with store.writing():
                store.remove(store.scenes().scene.tolist())
    assert killed >= 5
    fill(Store(str(uri)), paths, exact_below=150)
    after = Store(str(uri))
    assert contents(after) == contents(whole)
    assert after.count() == whole.count()
    assert sorted(after.scenes().path) == sorted(map(str, paths))
