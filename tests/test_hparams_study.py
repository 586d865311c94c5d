from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError

from siamese_sat.errors import InputError
from siamese_sat.hparams.grammar import as_overrides
from siamese_sat.hparams.search import _noted
from siamese_sat.hparams.space import suggest
from siamese_sat.hparams.study import (
    claim,
    counted,
    need_optuna,
    open_storage,
    open_study,
    refuse_password,
    revive,
    sampler,
    storage_url,
)
from tests.model.conftest import ROOT

NO_PROCESS = 2**22 + 1  # above what Linux gives


def composed(chosen: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", chosen)


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


def test_no_part_of_a_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    need_optuna()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for url in (
        "nodatabase://me:sec@ret@host/x", "nodatabase://me:sec@ret:sec@host/x", "nodatabase://me:sec?ret@host/x",
        "nodatabase://host/x?password=secret", "nodatabase://host/x?password=sec@ret", "me:sec@ret@host",
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"hparams_search\.storage: .* cannot be opened") as caught:
            open_storage(url)
        assert not re.search("sec|ret", str(caught.value)), url


@pytest.mark.parametrize(
    "given",
    [None, "sqlite:////data/a@b:c/study.db", "postgresql://me@host:5432/x", "${oc.env:STUDY_URL}",
     "postgresql://me:${oc.env:PASSWORD}@host/x", "postgresql://me:${oc.env:A,${oc.env:B}}@${oc.env:HOST}:5432/x"],
)  # fmt: skip
def test_an_address_without_a_password_may_stand_in_the_settings(given: str | None) -> None:
    refuse_password(given)


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


@pytest.mark.parametrize("name", sorted(f.stem for f in (ROOT / "conf/hparams_search/pruner").glob("*.yaml")))
def test_a_study_has_the_pruner_of_the_settings(name: str, tmp_path: Path) -> None:
    kinds = {"hyperband": "HyperbandPruner", "median": "MedianPruner", "none": "NopPruner"}
    study = study_in(tmp_path, f"hparams_search/pruner={name}")
    assert type(study.pruner).__name__ == kinds[name]


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
