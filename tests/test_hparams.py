from __future__ import annotations

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from siamese_sat.apart import starts_processes
from siamese_sat.errors import InputError
from siamese_sat.hparams.grammar import as_overrides, quoted, without, written
from siamese_sat.hparams.space import distributions, each_choice, suggest
from tests.model.conftest import ROOT


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


def test_which_trainings_start_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_NTASKS", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not starts_processes(composed([]))
    assert starts_processes(composed(["trainer=ddp"]))
    assert starts_processes(composed(["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]))
    assert not starts_processes(composed(["trainer=ddp_cpu", "trainer.devices=1"]))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not starts_processes(composed(["trainer=ddp"]))
