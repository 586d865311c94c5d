from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from siamese_sat.door import explain
from siamese_sat.errors import InputError
from siamese_sat.sweep import Notes, report, run_job

ROOT = Path(__file__).resolve().parents[1]
DOOR = """
import sys
sys.path.insert(0, {root!r})
from siamese_sat.door import door
from siamese_sat.errors import InputError

@door("train")
def main(cfg):
    if cfg.seed == 1:
        raise InputError("seed=1 is unlucky; take another.")
    if cfg.seed == 2:
        sys.exit(2)
    if cfg.seed == 9:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.seed == 3:
        raise ZeroDivisionError("a fault of our own")
    print("job of seed", cfg.seed, "ran")
    return 0.5

if __name__ == "__main__":
    main()
"""


def sweep(place: Path, seeds: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (place / "unlucky.py").write_text(DOOR.format(root=str(ROOT)))
    kept = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, "unlucky.py", "-m", f"seed={seeds}", f"hydra.sweep.dir={place}/sweep", *more],
        cwd=place, capture_output=True, text=True, env={**kept, **environment}, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("launcher", ["basic", "joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_jobs_of_a_sweep_run_whatever_becomes_of_others(launcher: str, tmp_path: Path) -> None:
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    done = sweep(tmp_path, "1,2,3,4", f"hydra/launcher={launcher}", "data.val_fraction=0.5")
    assert done.returncode == 1, done.stderr
    out = done.stdout + "".join(p.read_text() for p in (tmp_path / "sweep").glob(".submitit/*/*log.*"))
    assert "job of seed 4 ran" in out
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: job 0 (seed=1): seed=1 is unlucky; take another.",
        f"error: job 1 (seed=2): some scenes could not be searched; see the log in {tmp_path}/sweep/1.",
        "error: job 2 (seed=3): ZeroDivisionError: a fault of our own",
    ]
    assert "3 of 4 jobs did not end well" in done.stderr
    # A traceback for the fault of the program's own, and no other; each in its own job's log too.
    assert (out + done.stderr).count("Traceback") == 1
    logs = [path.read_text() for path in sorted((tmp_path / "sweep").glob("*/*.log"))]
    assert "unlucky" in logs[0]
    assert "ZeroDivisionError" in logs[2]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_job_that_is_killed_ends_in_a_line(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    done = sweep(tmp_path, "4,9", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    assert "error: a job's process was killed" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_status_of_a_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path, "2,4").returncode == 2
    well = sweep(tmp_path, "4,5")
    assert well.returncode == 0
    assert "error" not in well.stderr
    # A setting that no job could have is told before any of them runs.
    wrong = sweep(tmp_path, "4,5", "nonsense=1")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: There is no setting nonsense")
    assert "ran" not in wrong.stdout


@pytest.mark.parametrize("left_by", ["a full disk", "a kill"])
def test_a_note_is_whole_or_not_there(left_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"job": {"num": 1}, "overrides": {"task": ["seed=1"]}, "runtime": {"cwd": str(tmp_path), "output_dir": "x"},
            "sweep": {"dir": "sweep"}}  # fmt: skip
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: OmegaConf.create(told)))
    monkeypatch.setattr(Notes, "folder", tmp_path / "sweep" / ".jobs")
    write, unlink = Path.write_text, Path.unlink

    def half(path: Path, text: str, **how: str) -> int:
        write(path, text[: len(text) // 2], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    if left_by == "a kill":  # nobody clears away
        monkeypatch.setattr(Path, "unlink", lambda path: None)
    with pytest.raises((InputError, OSError), match="No space left"):
        run_job(lambda: sys.exit(2), explain)
    assert report() == 0
    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(Path, "unlink", unlink)
    run_job(lambda: sys.exit(2), explain)
    assert report() == 2


def test_a_sweep_shows_every_traceback_to_who_asks(tmp_path: Path) -> None:
    done = sweep(tmp_path, "1,4", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stdout + done.stderr
    assert "job of seed 4 ran" in done.stdout


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "sweep"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm")]
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher: str, extra: str) -> None:
    refused = pytest.raises(ConfigCompositionException)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), refused as caught:
        compose("train", ["hydra/launcher=basik"], return_hydra_config=True)
    error = type(caught.value)(str(caught.value).replace("basik", launcher))
    assert f'pip install "siamese-sat[{extra}]"' in str(explain(error))
    assert "pip" not in str(explain(caught.value))
