from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError

from siamese_sat.apart import starts_processes
from siamese_sat.errors import InputError
from siamese_sat.hparams.grammar import as_overrides, quoted, without, written
from siamese_sat.hparams.search import _noted, search_settings
from siamese_sat.hparams.space import distributions, each_choice, suggest
from siamese_sat.hparams.study import claim, counted, need_optuna, open_study, revive, sampler, storage_url
from siamese_sat.model.checkpoint import load_model
from tests.model.conftest import ROOT, make_labelled, settings

SPACE = "{optimizer.lr: {low: 1e-4, high: 1e-2, log: true}, loss: [supcon, proxy_anchor], model.embedding_dim: [8, 16]}"
NO_PROCESS = 2**22 + 1  # above what Linux gives


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


def composed(chosen: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", chosen)


@pytest.mark.parametrize(
    "value",
    [1, 1e-05, 2.5, True, None, "supcon", "a b", "null", "it's", "tail\\", "c:\\d'e", "7", "", "[x]",
     ["layer3", "layer4"], {"a": 1, "b": {"c": [None, "x y"]}}],
)  # fmt: skip
def test_values_come_back_as_they_were_written(value: object) -> None:
    assert OmegaConf.to_container(composed([f"+x={{v: {written(value)}}}"]).x) == {"v": value}
    assert composed([f"+x={quoted('a.b')}"]).x == "a.b"


def test_what_a_trial_sets_is_taken_from_the_command() -> None:
    given = ["optimizer.lr=1", "loss=triplet", "hparams_search=optuna", "hparams_search/pruner=none",
             "+hparams_search.x=1", "seed=3", "loss.loss.margin=1", "hparams=1"]  # fmt: skip
    assert without(given, ["optimizer.lr", "loss"]) == ["seed=3", "loss.loss.margin=1", "hparams=1"]


def test_every_kind_of_range_is_drawn_within_its_ends() -> None:
    space = distributions(
        {"a": {"low": 1e-5, "high": 1e-2, "log": True}, "b": {"low": 2, "high": 8, "step": 2},
         "c": {"low": 0, "high": 1.0}, "d": [None, "supcon", 3, ["layer3", "layer4"]]}
    )  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn: dict[str, set[str]] = {name: set() for name in space}
    for _ in range(40):
        trial = study.ask()
        texts = dict(text.split("=", 1) for text in suggest(trial, space))
        assert texts == dict(text.split("=", 1) for text in as_overrides(trial.params))
        for name, text in texts.items():
            drawn[name].add(text)
    assert all(1e-5 <= float(x) <= 1e-2 for x in drawn["a"])
    assert min(map(float, drawn["a"])) < 1e-4, "by its logarithm"
    assert drawn["b"] == {"2", "4", "6", "8"}
    assert len(drawn["c"]) == 40
    assert drawn["d"] == {"null", "supcon", "3", "[layer3, layer4]"}


def test_every_choice_stands_in_some_settings() -> None:
    space = distributions({"loss": ["a", "b", None], "x": {"low": 1, "high": 4}, "y": [7]})
    assert each_choice(space) == [
        ["loss=a", "x=1", "y=7"], ["loss=b", "x=1", "y=7"], ["loss=null", "x=1", "y=7"], ["loss=a", "x=4", "y=7"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values", [{"low": 1}, {"low": 2, "high": 1}, {"low": "a", "high": 2}, {"low": 1, "high": 2, "lag": True}, [],
               "abc", 3, {"low": 0, "high": 1.5, "log": True}]
)  # fmt: skip
def test_a_range_that_cannot_be_is_named(values: object) -> None:
    with pytest.raises(InputError, match=r"hparams_search\.space: optimizer\.lr"):
        distributions({"optimizer.lr": values})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="is empty"):
        distributions({})


def study_in(folder: Path, *more: str, **changed: object) -> optuna.Study:
    need_optuna()
    cfg = composed(["hparams_search=optuna", *more]).hparams_search
    known = {"space": {"x": [1, 2]}, "metric": "val/loss", "direction": "minimize", **changed}
    return open_study(cfg, storage_url(None, folder), **known)  # type: ignore[arg-type]


def test_a_study_is_taken_up_for_the_same_question_only(tmp_path: Path) -> None:
    study_in(tmp_path).enqueue_trial({"x": "1"})
    assert len(study_in(tmp_path).trials) == 1
    for changed in ({"space": {"x": [1, 3]}}, {"metric": "val/map_at_r"}, {"direction": "maximize"}):
        with pytest.raises(InputError, match=f"was begun with another {next(iter(changed))}"):
            study_in(tmp_path, **changed)


def test_an_address_that_cannot_be_opened_keeps_its_password() -> None:
    need_optuna()
    cfg = composed(["hparams_search=optuna"]).hparams_search
    for url in ("nonsense", "nodatabase://me:secret@host/x"):
        with pytest.raises(InputError, match=r"hparams_search\.storage: .* cannot be opened") as caught:
            open_study(cfg, url, {}, "val/loss", "minimize")
        assert "secret" not in str(caught.value)


def test_a_storage_that_another_machine_is_just_making_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    class Busy(optuna.storages.RDBStorage):
        def __init__(self, *given: object, **more: object) -> None:
            if len(refused) < 2:
                refused.append(1)
                raise IntegrityError("UNIQUE constraint failed", None, Exception())
            super().__init__(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(optuna.storages, "RDBStorage", Busy)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert study_in(tmp_path).trials == []
    assert len(refused) == 2


def test_trials_that_ended_without_a_word_are_done_anew_once(tmp_path: Path) -> None:
    study, space = study_in(tmp_path), {"x": optuna.distributions.CategoricalDistribution(["1", "2"])}

    def begun() -> optuna.Trial:
        trial = study.ask()
        claim(trial)
        suggest(trial, space)
        return trial

    complete, broken, _, killed, elsewhere = (begun() for _ in range(5))
    study.tell(complete, 1.0)
    broken.set_user_attr("error", "too large")
    study.tell(broken, state=TrialState.FAIL)
    killed.set_user_attr("pid", NO_PROCESS)
    elsewhere.set_user_attr("host", socket.gethostname() + "-other")
    elsewhere.set_user_attr("pid", NO_PROCESS)
    assert counted(study) == 5
    revive(study)
    states = [t.state for t in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING,
                      TrialState.WAITING]  # fmt: skip
    assert counted(study) == 4, "a complete one, one that failed for a reason, two that run"
    revive(study)
    assert len(study.trials) == 6, "it waits already"
    again = study.ask()
    assert suggest(again, space) == as_overrides(killed.params)
    assert again.user_attrs["again"] == killed.number


def test_a_trial_that_is_just_being_claimed_is_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(tmp_path)
    trial = study.ask()
    note = trial.set_user_attr

    def once(name: str, value: object) -> None:
        note(name, value)
        raise InterruptedError

    monkeypatch.setattr(trial, "set_user_attr", once)
    monkeypatch.setattr(os, "getpid", lambda: NO_PROCESS)
    with pytest.raises(InterruptedError):
        claim(trial)
    monkeypatch.undo()
    revive(study)
    assert [t.state for t in study.trials] == [TrialState.RUNNING]


def test_of_two_that_see_a_trial_die_one_does_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = study_in(tmp_path), study_in(tmp_path)
    trial = first.ask()
    claim(trial)
    trial.set_user_attr("pid", NO_PROCESS)
    seen = second.get_trials(states=(TrialState.RUNNING,))
    revive(first)
    found = second.get_trials
    # As it stood when both looked, before either told the study; nor is seen what was enqueued meanwhile.
    monkeypatch.setattr(second, "get_trials", lambda states=None, **how: seen if states else found(**how)[:1])
    revive(second)
    assert [t.state for t in first.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_machine_that_gives_no_sign_of_life_has_its_trial_done_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path)
    silent, noted = study.ask(), study.ask()
    noted.set_user_attr("error", "too large")
    stale = [silent._trial_id, noted._trial_id]
    monkeypatch.setattr(study._storage, "_get_stale_trial_ids", lambda study_id: stale)
    # Optuna itself looks for them too, before it begins a trial.
    study.optimize(lambda trial: float(trial.user_attrs["again"] == silent.number), n_trials=1)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[-1].value == 1


def test_a_trial_that_the_keyboard_stops_is_done_anew(tmp_path: Path) -> None:
    study = study_in(tmp_path)

    def stopped(trial: optuna.Trial) -> float:
        def run() -> float:
            trial.suggest_float("x", 0, 1)
            raise KeyboardInterrupt

        return _noted(trial, run, 1)

    with pytest.raises(KeyboardInterrupt):
        study.optimize(stopped, n_trials=1)
    done, waits = study.trials
    assert (done.state, waits.state) == (TrialState.FAIL, TrialState.WAITING)
    assert waits.system_attrs["fixed_params"] == done.params


def test_a_study_taken_up_draws_what_an_uninterrupted_one_would() -> None:
    cfg = composed(["hparams_search=optuna", "seed=5"]).hparams_search

    def draws(numbers: range) -> list[float]:
        study, found = optuna.create_study(), []
        for number in numbers:
            study.sampler = sampler(cfg, number)
            found.append(study.ask().suggest_float("x", 0, 1))
        return found

    whole = draws(range(6))
    assert whole[3:] == draws(range(3, 6))
    assert len(set(whole)) == 6, "every trial its own"


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
        ("hparams_search.space=3", r"hparams_search\.space must give"),
    ],
)
def test_a_wrong_search_is_told_before_any_trial(wrong: str, said: str, scenes: Path, tmp_path: Path) -> None:
    chosen = overrides(scenes, tmp_path / "out", wrong)
    with pytest.raises(Exception, match=said):
        search_settings(composed(chosen), chosen)
    assert not (tmp_path / "out" / "study.db").exists()


@pytest.mark.parametrize("name", sorted(f.stem for f in (ROOT / "conf/hparams_search/pruner").glob("*.yaml")))
def test_every_pruner_can_be_had(name: str) -> None:
    cfg = composed(["hparams_search=optuna", f"hparams_search/pruner={name}"])
    assert isinstance(instantiate(cfg.hparams_search.pruner), optuna.pruners.BasePruner)


@pytest.mark.parametrize(("epochs", "brackets"), [(3, 1), (30, 3), (300, 5)])
def test_hyperband_shares_out_the_epochs_of_a_training(epochs: int, brackets: int, tmp_path: Path) -> None:
    study = study_in(tmp_path, "hparams_search/pruner=hyperband", f"trainer.max_epochs={epochs}")
    assert isinstance(study.pruner, optuna.pruners.HyperbandPruner)
    trial = study.ask()
    trial.report(1.0, 0)
    trial.should_prune()
    # Of max_resource alone (Li et al. 2018, section 3): floor(log3(epochs / min_resource)) + 1.
    assert len(study.pruner._pruners) == brackets


@pytest.mark.parametrize("epochs", ["-1", "null"])
def test_hyperband_needs_a_number_of_epochs(epochs: str, tmp_path: Path) -> None:
    endless = ("hparams_search/pruner=hyperband", f"trainer.max_epochs={epochs}")
    with pytest.raises(InputError, match=r"max_resource=(-1|None) must be .* set trainer\.max_epochs"):
        study_in(tmp_path, *endless)
    assert not list(tmp_path.iterdir()), "told before there is a study"
    study = study_in(tmp_path, *endless, "hparams_search.pruner.max_resource=auto")
    for _ in range(2):
        trial = study.ask()
        for epoch in range(9):
            trial.report(1.0, epoch)
            trial.should_prune()
        study.tell(trial, 1.0)
    assert study.pruner._max_resource == 9  # type: ignore[attr-defined]


def test_losses_are_not_compared_by_their_own_value(scenes: Path, tmp_path: Path) -> None:
    chosen = overrides(scenes, tmp_path, "monitor.metric=val/loss", "monitor.mode=min")
    with pytest.raises(InputError, match="cannot be compared with that of another"):
        search_settings(composed(chosen), chosen)


def test_a_search_is_not_one_of_many_processes(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    chosen = overrides(scenes, tmp_path)
    with pytest.raises(InputError, match="start it once a machine"):
        search_settings(composed(chosen), chosen)


def test_which_trainings_start_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_NTASKS", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not starts_processes(composed([]))
    assert starts_processes(composed(["trainer=ddp"]))
    assert starts_processes(composed(["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]))
    assert not starts_processes(composed(["trainer=ddp_cpu", "trainer.devices=1"]))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not starts_processes(composed(["trainer=ddp"]))


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


DRIVER = """
import sys
sys.path.insert(0, {root!r})
import tests.model.conftest  # knows a small network
import train

if __name__ == "__main__":
    train.main()
"""


def driven(place: Path, chosen: list[str]) -> subprocess.Popen[str]:
    script = place / "driver.py"
    script.write_text(DRIVER.format(root=str(ROOT)))
    return subprocess.Popen(
        [sys.executable, str(script), *chosen, f"hydra.run.dir={place}/hydra"], cwd=place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


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
