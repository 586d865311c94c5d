"""The search for the best settings: a trial is a training; the study says which settings come next."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from siamese_sat.apart import starts_processes, train_apart
from siamese_sat.door import CONF, explain
from siamese_sat.errors import InputError
from siamese_sat.hparams.grammar import as_overrides, without, written
from siamese_sat.hparams.space import distributions, each_choice, suggest
from siamese_sat.hparams.study import (
    STORAGE,
    claim,
    counted,
    give_back,
    need_optuna,
    open_study,
    refuse_password,
    revive,
    sampler,
    storage_url,
)
from siamese_sat.report.study import Finding, draw_study, trials_table, write_trials
from siamese_sat.settings import LESS_IS_BETTER, check_training
from siamese_sat.training import monitored, train

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What all trials of a search have in common.

    Attributes:
        study: its name.
        base: overrides of the command that are not searched.
        metric: that each epoch reports.
        returned: that a trial is judged by, see ``optimized_metric``.
        pruner: settings of it.
        folder: of the search; each trial has one below it.
    """

    study: str
    base: Sequence[str]
    metric: str
    returned: str
    pruner: DictConfig
    folder: Path


def search_settings(cfg: DictConfig, overrides: Sequence[str], command: str = "python train.py") -> float:
    """Runs the trials that are missing, and says which settings were best.

    Args:
        cfg: as ``conf/train.yaml`` composes it, with ``hparams_search``.
        overrides: the command line that it was composed from; every trial is composed anew from these and its own.
        command: that the overrides follow.

    Returns:
        The best value.

    Raises:
        InputError: a setting cannot be, the storage cannot be opened, or no trial ended well.
    """
    need_optuna()
    if any(name in os.environ for name in ("RANK", "LOCAL_RANK")) or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise InputError(
            "hparams_search starts the processes of its trials itself: start it once a machine (on SLURM as a job "
            "array), without torchrun or srun -n, and give hparams_search.storage where machines share a study."
        )
    refuse_password(_plain(cfg.hparams_search, resolve=False)["storage"])
    ours, folder = cfg.hparams_search, Path(cfg.paths.output_dir).absolute()
    if not isinstance(ours.n_trials, int) or isinstance(ours.n_trials, bool) or ours.n_trials < 1:
        raise InputError(f"hparams_search.n_trials={ours.n_trials!r} must be a whole number from 1 up.")
    given = ours.space if ours.space is not None else ours.usual_space
    if not isinstance(given, DictConfig):
        raise InputError("hparams_search.space must give each setting a range or choices, such as {loss: [supcon]}.")
    ranges: dict[str, Any] = {str(name): values for name, values in _plain(given).items()}
    space = distributions(ranges)
    check_training(cfg)
    metric = str(cfg.monitor.metric if cfg.optimized_metric == "best" else cfg.optimized_metric)
    if metric.endswith("/loss") and any(name.split(".")[0] == "loss" for name in space):
        raise InputError(
            f"{metric} of one loss cannot be compared with that of another: set monitor.metric=val/map_at_r "
            "monitor.mode=max."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); set paths.output_dir.") from error
    base = without(overrides, [*space, "paths.output_dir"])
    for settings in each_choice(space):  # what cannot be is told before any training
        check_training(_composed([*base, *settings]))
    url = storage_url(ours.storage, folder)
    study = open_study(ours, url, ranges, metric, "minimize" if metric.endswith(LESS_IS_BETTER) else "maximize")
    os.environ[STORAGE] = url
    plan = Plan(str(ours.study), base, metric, str(cfg.optimized_metric), ours.pruner, folder)

    def objective(trial: optuna.Trial) -> float:
        claim(trial)
        study.sampler = sampler(ours, trial.number)  # two machines may have begun with the same one
        return _noted(trial, lambda: _trial(plan, trial, suggest(trial, space)), ours.n_trials)

    while True:
        revive(study)
        if counted(study) >= ours.n_trials:
            break
        study.sampler = sampler(ours, len(study.get_trials(deepcopy=False)))
        study.optimize(objective, n_trials=1, catch=(Exception,))
    return _told(study, plan, command)


def _composed(overrides: Sequence[str]) -> DictConfig:
    if GlobalHydra().is_initialized():
        return compose("train", list(overrides))
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", list(overrides))


def _plain(cfg: DictConfig, resolve: bool = True) -> dict[Any, Any]:
    found = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(found, dict)
    return found


def _trial(plan: Plan, trial: optuna.Trial, settings: Sequence[str]) -> float:
    """One training, in a folder of its own."""
    import optuna

    folder = plan.folder / "trials" / str(trial.number)
    trial.set_user_attr("folder", str(folder))
    log.info("Trial %d: %s", trial.number, " ".join(settings))
    pruning = {
        "_target_": "siamese_sat.hparams.pruning.Pruning",
        "study": plan.study,
        "number": trial.number,
        "metric": plan.metric,
        "pruner": _plain(plan.pruner),
    }
    overrides = [*plan.base, *settings, f"paths.output_dir={written(str(folder))}"]
    cfg = _composed(overrides)
    folder.mkdir(parents=True, exist_ok=True)
    if starts_processes(cfg):
        pruning["parent"] = os.getpid()
        result = train_apart([*overrides, f"+callbacks.pruning={written(pruning)}"], folder)
    else:
        OmegaConf.update(cfg, "callbacks.pruning", pruning, force_add=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        result = train(cfg)
    if result.pruned:
        raise optuna.TrialPruned
    trial.set_user_attr("checkpoint", str(result.checkpoint))
    return monitored(result, plan.returned)


def _noted(trial: optuna.Trial, run: Callable[[], float], count: int) -> float:
    """Runs a trial and says in one line how it ended; only what failed for a reason is noted as failed."""
    import optuna

    begun = time.monotonic()
    try:
        value = run()
    except optuna.TrialPruned:
        log.info("Trial %d: pruned after %.0f s.", trial.number, time.monotonic() - begun)
        raise
    except KeyboardInterrupt:
        give_back(trial.study, trial)
        raise
    except Exception as error:
        reason = (
            explain(error) or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ).strip()
        trial.set_user_attr("error", reason)
        log.error("Trial %d failed: %s", trial.number, reason)
        log.debug("", exc_info=True)
        raise
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    log.info("Trial %d of %d: %.5g in %.0f s.", trial.number, count, value, time.monotonic() - begun)
    return value


def _told(study: optuna.Study, plan: Plan, command: str) -> float:
    """Table, pictures, and the command that trains with the best settings."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    write_trials(trials, plan.folder / "trials.csv")
    if not any(t.state == TrialState.COMPLETE for t in trials):
        reasons = [str(t.user_attrs["error"]) for t in trials if "error" in t.user_attrs]
        raise InputError(f"No trial ended well; the last one: {reasons[-1] if reasons else 'see the log'}")
    draw_study(study, plan.metric, plan.folder)
    best = study.best_trial
    place = Path(best.user_attrs["checkpoint"])
    again = shlex.join([*shlex.split(command), *plan.base, *as_overrides(best.params)])
    trials_table(trials, plan.metric, Finding(best.number, study.best_value, place, again))
    log.info("Trials and pictures: %s", plan.folder)
    return float(study.best_value)
