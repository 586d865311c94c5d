"""What the two command-line doors share: hydra, and errors in one sentence."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from siamese_sat.distributed import is_first
from siamese_sat.errors import InputError
from siamese_sat.hparams.study import need_optuna, refuse_password
from siamese_sat.sweep import report, run_job

log = logging.getLogger(__name__)
CONF = str(Path(__file__).resolve().parent.parent / "conf")
TRACEBACK, SENTENCES = "HYDRA_FULL_ERROR", "SIAMESE_SAT_SENTENCES"
# For a process that only trains along: no folder, no log and no word of its own, errors excepted.
ALONG = (
    "hydra.output_subdir=null",
    "hydra.job_logging.root.handlers=[console]",
    "hydra.job_logging.root.level=ERROR",
    "+hydra.job_logging.handlers.file.delay=true",
)


def door(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """A hydra main whose errors of the user's making end in one sentence on standard error and exit status 1.

    Faults of the program's own keep their traceback; ``HYDRA_FULL_ERROR=1`` shows it for all. Of several jobs (``-m``)
    all run; those that failed have a sentence each at the end, and the exit status is not 0.

    Args:
        config_name: root config in ``conf/``.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def main() -> None:
            wanted = os.environ.get(TRACEBACK) == "1" and SENTENCES not in os.environ
            # hydra would print its own paragraph and leave; with this set it raises, and we see what happened.
            os.environ[TRACEBACK] = "1"
            if not wanted:  # the processes that this one starts are not to take that for the user's wish
                os.environ[SENTENCES] = "1"
            if config_name == "train" and not is_first():
                placed = any(text.startswith("hydra.run.dir=") for text in sys.argv[1:])
                sys.argv += [*ALONG, *([] if placed else ["hydra.run.dir=."])]

            # Launchers send this to processes of their own: all it knows must be plain.
            @functools.wraps(task)
            def job(cfg: DictConfig) -> Any:  # noqa: ANN401 - hydra hands on whatever the task returns
                if HydraConfig.get().mode != RunMode.RUN:
                    return run_job(lambda: task(cfg), _nothing if wanted else explain)
                try:
                    return task(cfg)
                except Exception as error:
                    if wanted:
                        raise
                    _leave(error)

            status = 0
            try:
                _refuse_passwords(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(job)()
            except Exception as error:
                if wanted:
                    raise
                if not _killed(error):
                    _leave(error)
                print("error: a job's process was killed, most often for want of memory.", file=sys.stderr)
                status = 1
            except KeyboardInterrupt:
                print("Stopped.", file=sys.stderr)
                sys.exit(130)
            status = max(status, report())
            if status:
                sys.exit(status)

        return main

    return decorate


def _nothing(error: BaseException) -> None:
    """Explains nothing, so that every error keeps its traceback."""


def _refuse_passwords(arguments: Sequence[str]) -> None:
    """Raises where one is given: hydra writes the command line to files before the task begins."""
    for name, _, value in (text.partition("=") for text in arguments):
        if name.lstrip("+") == "hparams_search.storage":
            need_optuna()
            refuse_password(value.strip("'\""))


def _killed(error: Exception) -> bool:
    """Whether a launcher lost a job's process: joblib and submitit have errors of their own for that."""
    return type(error).__name__ in ("TerminatedWorkerError", "UncompletedJobError")


def _leave(error: Exception) -> NoReturn:
    sentence = explain(error)
    if sentence is None:
        raise error
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)


def explain(error: BaseException) -> str | None:
    """One sentence for an error that the user can mend, None for any other."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, InputError):
            return str(link)
    for link in chain:
        if isinstance(link, OverrideParseException):
            return f"{_line(link)} Write settings as name=value, with quotes round what holds spaces or brackets."
        unknown = re.match(r"Could not override '(.+?)'", str(link))
        if unknown:
            return f"There is no setting {unknown[1]}; all of them stand in conf/, and --cfg job shows those in force."
        launcher = re.search(r"Could not find 'hydra/launcher/(joblib|submitit)", str(link))
        if launcher:
            extra = {"joblib": "sweep", "submitit": "slurm"}[launcher[1]]
            return f'This launcher needs hydra\'s plugin for it: pip install "siamese-sat[{extra}]".'
        if isinstance(link, ConfigCompositionException | OmegaConfBaseException):
            return f"{_line(link)} The settings and their defaults stand in conf/; --cfg job shows what is in force."
        if isinstance(link, InstantiationException):
            cause = chain[-1]
            reason = f"{_line(cause)} " if cause is not link else ""
            where = str(link).splitlines()[0].rstrip(":") if reason else _line(link).rstrip(".")
            return f"{reason}({where}) Check the names and values of this setting."
        if isinstance(link, HydraException):
            return _line(link)
    if isinstance(error, MemoryError):
        return "Out of memory; lower search.batch_size or sampler.classes_per_batch."
    return None


def _line(error: BaseException) -> str:
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    for number, line in enumerate(lines):
        if line.startswith("Available options"):
            names = itertools.takewhile(lambda name: not name.endswith(":"), lines[number + 1 :])
            return f"{lines[0]}; {line[0].lower()}{line[1:]} {', '.join(names)}."
    # omegaconf says the key on the second line, hydra what to do on the third.
    text = " ".join(dict.fromkeys(lines[:2])) if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
