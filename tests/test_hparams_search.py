from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from siamese_sat.errors import InputError
from siamese_sat.hparams.grammar import quoted
from siamese_sat.hparams.search import search_settings
from siamese_sat.hparams.study import storage_url
from siamese_sat.model.checkpoint import load_model
from tests.model.conftest import ROOT, make_labelled, settings

SPACE = "{optimizer.lr: {low: 1e-4, high: 1e-2, log: true}, loss: [supcon, proxy_anchor], model.embedding_dim: [8, 16]}"


def composed(chosen: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", chosen)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("hparams") / "scenes")


def overrides(scenes: Path, out: Path, *more: str) -> list[str]:
    """A search of trainings of two epochs of two batches."""
    short = ["trainer.max_epochs=2", "sampler.batches_per_epoch=2", "callbacks.finetune.warmup_epochs=1"]
    compared = ["monitor.metric=val/map_at_r", "monitor.mode=max", "logger.tensorboard=null"]
    base = [s for s in settings(scenes, out, scenes.parent / "cache") if not s.startswith("model.embedding_dim")]
    space = [] if any(s.startswith("hparams_search.space=") for s in more) else [f"hparams_search.space={SPACE}"]
    return [*base, *short, *compared, "hparams_search=optuna", *space, *more]


DRIVER = """
import sys
sys.path.insert(0, {root!r})
import tests.model.conftest  # knows a small network
import train

if __name__ == "__main__":
    train.main()
"""


def driven(place: Path, chosen: list[str], **environment: str) -> subprocess.Popen[str]:
    script = place / "driver.py"
    script.write_text(DRIVER.format(root=str(ROOT)))
    return subprocess.Popen(
        [sys.executable, str(script), *chosen, f"hydra.run.dir={place}/hydra"], cwd=place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "given",
    ["postgresql://me:secret@host/x", "postgresql+psycopg://me:secret@${oc.env:DB_HOST}/x", "mysql://me:se:c@ret@host",
     "postgresql://host/x?user=me&password=secret"],
)  # fmt: skip
def test_a_password_in_a_setting_is_refused(given: str, scenes: Path, tmp_path: Path) -> None:
    chosen = overrides(scenes, tmp_path / "out", f"hparams_search.storage='{given}'")
    with pytest.raises(InputError, match=r"give 'hparams_search\.storage=\$\{oc\.env:STUDY_URL\}'") as caught:
        search_settings(composed(chosen), chosen)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("by_environment", [False, True])
def test_no_file_of_a_search_holds_a_password(by_environment: bool, scenes: Path, tmp_path: Path) -> None:
    address = "nodatabase://me:secret@host/x"
    given = "${oc.env:STUDY_URL}" if by_environment else address
    run = driven(tmp_path, overrides(scenes, tmp_path / "out", f"hparams_search.storage={given}"), STUDY_URL=address)
    _, err = run.communicate(timeout=200)
    assert run.returncode == 1
    assert ("host/x cannot be opened" if by_environment else "holds a password") in err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "hydra" / ".hydra" / "config.yaml" in files) == by_environment
    assert not [path for path in files if "secret" in path.read_text()]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("hparams_search.n_trials=0", r"n_trials=0 must be a whole number"),
        ("hparams_search.space={optimizr.lr: [1]}", "Could not override 'optimizr.lr'"),
        ("hparams_search.space={loss: [nonsense]}", "Could not find 'loss/nonsense'"),
        ("hparams_search.space={loss: [supcon, nonsense]}", "Could not find 'loss/nonsense'"),
        ("hparams_search.space={seed: [-1, 1]}", "seed=-1"),
        ("hparams_search.space={loss: [supcon, triplet], seed: [1, 2, -1]}", "seed=-1"),
        ("hparams_search.space={data.val_fraction: {low: 0.1, high: 2.5}}", r"data\.val_fraction=2\.5"),
        ("paths.output_dir=s3://bucket/x", "training writes to a folder on this machine"),
        ("hparams_search.space=3", r"hparams_search\.space must give"),
    ],
)
def test_a_wrong_search_is_told_before_any_trial(
    wrong: str, said: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = overrides(scenes, tmp_path / "out", wrong)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=said):
        search_settings(composed(chosen), chosen)
    assert not (tmp_path / "out" / "study.db").exists()
    assert not (tmp_path / "s3:").exists()


def test_losses_are_not_compared_by_their_own_value(scenes: Path, tmp_path: Path) -> None:
    chosen = overrides(scenes, tmp_path, "monitor.metric=val/loss", "monitor.mode=min")
    with pytest.raises(InputError, match="cannot be compared with that of another"):
        search_settings(composed(chosen), chosen)


def test_a_search_is_not_one_of_many_processes(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    chosen = overrides(scenes, tmp_path)
    with pytest.raises(InputError, match="start it once a machine"):
        search_settings(composed(chosen), chosen)


def test_a_search_in_which_one_kind_fails_finds_the_best_of_the_others(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    fails = SPACE.replace("[8, 16]", "[8, 1000000000]")  # the second is too large for any memory
    chosen = overrides(scenes, tmp_path, f"hparams_search.space={fails}", "hparams_search.n_trials=5")
    with caplog.at_level(logging.INFO):
        best = search_settings(composed(chosen), chosen)
    table = pd.read_csv(tmp_path / "trials.csv")
    assert len(table) == 5
    failed = table[table.state == "fail"]
    assert 0 < len(failed) < 5, "the seed draws both"
    assert set(failed["model.embedding_dim"]) == {1000000000}
    assert failed.error.notna().all()
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == len(failed)
    assert all(line.startswith("Trial ") and "\n" not in line for line in lines)
    done = table[table.state == "complete"]
    assert best == pytest.approx(done.value.max())
    row = done.loc[done.value.idxmax()]
    out = capsys.readouterr().out
    command = out.splitlines()[-1]
    assert f"Best: trial {row.number}, val/map_at_r" in out
    assert f"{tmp_path}/trials/{row.number}/checkpoints/best.ckpt" in out
    assert (
        load_model(tmp_path / "trials" / str(row.number) / "checkpoints" / "best.ckpt").embedder.spec.embedding_dim == 8
    )
    assert command.startswith("python train.py ")
    assert "hparams_search" not in command
    assert command.endswith(f"optimizer.lr={row['optimizer.lr']} loss={row.loss} model.embedding_dim=8")
    trial = OmegaConf.load(tmp_path / "trials" / str(row.number) / "config.yaml")
    kinds = {"supcon": "SupConLoss", "proxy_anchor": "ProxyAnchorLoss"}
    assert str(OmegaConf.select(trial, "loss.loss._target_")).endswith(kinds[row.loss]), "groups are composed anew"
    for name in ("history.png", "importances.png"):
        picture = imread(tmp_path / name)
        assert picture[..., :3].std() > 0.02, f"{name} is blank"


def test_the_best_checkpoint_is_named_as_it_is_called(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ("callbacks.checkpoint.filename=winner", f"callbacks.checkpoint.dirpath={tmp_path}/kept")
    chosen = overrides(scenes, tmp_path / "out", *named, "hparams_search.n_trials=1")
    search_settings(composed(chosen), chosen)
    assert f"{tmp_path}/kept/winner.ckpt\n" in capsys.readouterr().out
    noted = json.loads((tmp_path / "out" / "trials" / "0" / "metrics.json").read_text())["checkpoint"]
    assert load_model(tmp_path / "out" / "trials" / "0" / noted).prototypes


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_where_it_was(scenes: Path, tmp_path: Path) -> None:
    chosen = overrides(scenes, tmp_path / "out", "hparams_search.n_trials=8")
    first = driven(tmp_path, chosen)
    deadline = time.monotonic() + 240
    while first.poll() is None and not (tmp_path / "out" / "trials" / "4" / "csv" / "metrics.csv").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -9
    before = optuna.load_study(study_name="train", storage=storage_url(None, tmp_path / "out")).trials
    assert [t.state for t in before] == [TrialState.COMPLETE] * 4 + [TrialState.RUNNING]

    second = driven(tmp_path, chosen)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert "Trial 4 was cut short" in out
    after = optuna.load_study(study_name="train", storage=storage_url(None, tmp_path / "out")).trials
    assert len(after) == 9
    assert [(t.params, t.value, t.datetime_complete) for t in after[:4]] == [
        (t.params, t.value, t.datetime_complete) for t in before[:4]
    ]
    assert after[4].state == TrialState.FAIL
    assert after[5].params == before[4].params, "what was killed is done anew"
    assert sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in after) == 8
    assert len({str(t.params) for t in after}) == 8, "no draw was repeated"
    assert out.splitlines()[-2].startswith("python ") or "python train.py" in out

    third = driven(tmp_path, chosen)  # nothing is missing
    out, err = third.communicate(timeout=300)
    assert third.returncode == 0, err
    assert "INFO: Trial " not in out
    assert "Best: trial" in out


@pytest.mark.slow
def test_a_trial_of_two_processes_is_pruned_by_what_it_reports(scenes: Path, tmp_path: Path) -> None:
    # Whatever it has after an epoch is less than 2.
    pruner = "{_target_: optuna.pruners.ThresholdPruner, lower: 2, n_warmup_steps: 1}"
    more = ["~hparams_search.pruner", f"+hparams_search.pruner={pruner}", "hparams_search.n_trials=1"]
    more += ["trainer=ddp_cpu", "trainer.max_epochs=4", "model.backbone=resnet18"]
    chosen = [s for s in overrides(scenes, tmp_path / "out", *more) if s != "trainer=cpu"]
    run = driven(tmp_path, chosen)
    try:
        _, err = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == 1, err
    assert "error: No trial ended well" in err
    (trial,) = optuna.load_study(study_name="train", storage=storage_url(None, tmp_path / "out")).trials
    assert trial.state == TrialState.PRUNED, err
    assert sorted(trial.intermediate_values) == [0, 1]


@pytest.mark.slow
def test_two_machines_share_a_study(scenes: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        more = (f"hparams_search.storage={quoted(url)}", "hparams_search.n_trials=6")
        runs.append(driven(tmp_path / name, overrides(scenes, tmp_path / name / "out", *more)))
    try:
        errors = [run.communicate(timeout=250)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], errors
    trials = optuna.load_study(study_name="train", storage=url).trials
    complete = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(complete) in (6, 7), "the last two may begin at one moment"
    assert len(trials) == len(complete)
    assert len({str(t.params) for t in trials}) == len(trials), "nobody did what another did"
    assert {Path(t.user_attrs["folder"]).parts[-4] for t in trials} == {"one", "two"}, "both worked"
    for name in ("one", "two"):
        assert not (tmp_path / name / "out" / "study.db").exists()
