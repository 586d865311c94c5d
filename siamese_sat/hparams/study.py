"""Where the trials of a search are kept, which of them count, and which must be done again."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from siamese_sat.errors import InputError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

Direction = Literal["minimize", "maximize"]
# By it a process of a trial finds the study: an address may hold a password, and settings are written to files.
STORAGE = "SIAMESE_SAT_STUDY"
HEARTBEAT, GRACE, ATTEMPTS = 30, 120, 5  # seconds, seconds, a second apart


def need_optuna() -> None:
    """Raises where it is not installed.

    Raises:
        InputError: Optuna is missing.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError('hparams_search=optuna needs Optuna: pip install "siamese-sat[hpo]".') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Ours, one line a trial; Optuna's would add a traceback to each that failed.
    optuna.logging.disable_default_handler()
    optuna.logging.disable_propagation()
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def refuse_password(address: object) -> None:
    """Looks at the address of a storage before it is resolved: hydra has written, or will write, just that to files.

    Args:
        address: ``hparams_search.storage`` as given, with its ``${...}``.

    Raises:
        InputError: a password stands in it.
    """
    text, found = str(address), 1
    while found:
        text, found = re.subn(r"\$\{[^{}]*\}", "", text)
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
        written = bool(url.password) or any(
            re.search("passw|pwd", name, re.I) and url.query[name] for name in url.query
        )
    except (ArgumentError, ValueError):
        written = re.search(r":[^@]+@", text) is not None
    if written:
        raise InputError(
            "hparams_search.storage holds a password, and settings are written to files: put the address in a variable "
            "of the environment, such as STUDY_URL, and give 'hparams_search.storage=${oc.env:STUDY_URL}'."
        )


def storage_url(given: str | None, folder: Path) -> str:
    """The URL of the storage: the one given, else of a file in the folder."""
    return given or f"sqlite:///{folder.absolute() / 'study.db'}"


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The storage behind a URL; a trial that runs gives a sign of life every half minute.

    Raises:
        InputError: it cannot be opened.
    """
    import optuna
    from sqlalchemy.exc import DBAPIError

    waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for left in range(ATTEMPTS - 1, -1, -1):
        try:
            return optuna.storages.RDBStorage(
                url, engine_kwargs=waiting, heartbeat_interval=HEARTBEAT, grace_period=GRACE,
                heartbeat_stale_trial_callback=give_back,
            )  # fmt: skip
        except Exception as error:  # SQLAlchemy, its drivers and Alembic raise many kinds
            if left and isinstance(error, DBAPIError):
                time.sleep(1)  # another machine may be making the tables at this moment
                continue
            lines = str(error).splitlines() or [type(error).__name__]
            if type(error) is ValueError:  # of the port, which what follows an @ or : of a password is taken for
                lines = ["an @, : or / in a password is written %40, %3A, %2F"]
            # A password may stand before the last @, or in what follows a ?.
            shown = re.sub(r"\?.*", "", url.rsplit("@", 1)[-1]) if "@" not in url.partition("?")[2] else "its address"
            raise InputError(
                f"hparams_search.storage: {shown} cannot be opened ({lines[0]}); "
                "give sqlite:///<file>, or the URL of a database whose driver is installed."
            ) from error
    raise AssertionError("the last attempt returns or raises")


def open_study(cfg: DictConfig, url: str, space: Mapping[str, Any], metric: str, direction: Direction) -> optuna.Study:
    """The study of these settings, made where there is none yet.

    Args:
        cfg: ``hparams_search``.
        url: of the storage.
        space: as given.
        metric: that is optimised.
        direction: ``minimize`` or ``maximize``.

    Raises:
        InputError: the storage cannot be opened, or a study of this name looks for something else.
    """
    import optuna

    pruner = _pruner(cfg)
    storage = open_storage(url)
    study = optuna.create_study(
        storage=storage, study_name=str(cfg.study), direction=direction, load_if_exists=True,
        pruner=pruner,
    )  # fmt: skip
    wanted = {"metric": metric, "direction": direction, "space": dict(space)}
    told = json.dumps(wanted, sort_keys=True)
    before = study.user_attrs.get("wanted")
    if before is None:
        study.set_user_attr("wanted", told)
    elif before != told:
        old = json.loads(before)
        what = next(name for name in wanted if old[name] != wanted[name])
        raise InputError(
            f"hparams_search.study={cfg.study} was begun with another {what} ({old[what]}); give the same as then, "
            f"or another name or output folder."
        )
    return study


def _pruner(cfg: DictConfig) -> optuna.pruners.BasePruner:
    if "max_resource" in cfg.pruner:
        most = cfg.pruner.max_resource
        if most != "auto" and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise InputError(
                f"hparams_search.pruner.max_resource={most} must be the most epochs that a trial may have: set "
                "trainer.max_epochs from 1 up, or hparams_search.pruner.max_resource=auto, which takes those of the "
                "first trial that ends."
            )
    made: optuna.pruners.BasePruner = instantiate(cfg.pruner)
    return made


def sampler(cfg: DictConfig, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of the trial of that number.

    A sampler seeded alike at every start would draw again, in a study that is taken up, what its first trials had.

    Args:
        cfg: ``hparams_search``.
        number: of the trial; as many as there are, for the one that comes next.
    """
    own = OmegaConf.to_container(cfg.sampler, resolve=True)
    assert isinstance(own, dict)
    if own.get("seed") is not None:
        own["seed"] = int(np.random.SeedSequence([int(own["seed"]), number]).generate_state(1)[0])
    made: optuna.samplers.BaseSampler = instantiate(own)
    return made


def claim(trial: optuna.Trial) -> None:
    """Notes which process runs a trial; the machine last, since whoever reads its name looks for the process there."""
    trial.set_user_attr("pid", os.getpid())
    trial.set_user_attr("host", socket.gethostname())


def give_back(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """Lets the settings of a trial that nobody ends wait for the next free process.

    Called by the one that told the study so, and by no other: several that see it at one moment would each do it.
    """
    again = {t.user_attrs.get("again") for t in study.get_trials(deepcopy=False)}
    if "error" not in trial.user_attrs and trial.number not in again:
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        log.info("Trial %d was cut short: it is done anew.", trial.number)


def revive(study: optuna.Study) -> None:
    """Gives trials that ended without a word, by a kill or a fault of the machine, back to be done anew.

    Of this machine: those whose process is gone. Of others: those that gave no sign of life for two minutes. They stay
    in the study as failed, and their settings wait for the next free process.
    """
    import optuna
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        attributes = trial.user_attrs
        if attributes.get("host") == socket.gethostname() and not _alive(attributes["pid"]):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, UpdateFinishedTrialError):  # another process was first
                continue
            give_back(study, trial)
    optuna.storages.fail_stale_trials(study)


def counted(study: optuna.Study) -> int:
    """Trials that are done or being done: complete, pruned, failed for a reason, or running somewhere."""
    from optuna.trial import TrialState

    done = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return sum(t.state in done or "error" in t.user_attrs for t in study.get_trials(deepcopy=False))


def _alive(pid: Any) -> bool:  # noqa: ANN401 - read from a database
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
