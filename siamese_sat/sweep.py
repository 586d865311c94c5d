"""Several jobs of one command: one that fails does not take the others with it."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from siamese_sat.report.files import replacing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """How a job of a sweep ended.

    Attributes:
        number: as its folder is called.
        settings: as given on the command line, this job's choice of each.
        status: exit status, 0 where all went well.
        reason: one sentence, empty where all went well.
    """

    number: int
    settings: Sequence[str]
    status: int = 0
    reason: str = ""


class Notes(Callback):
    """Makes room for the notes of a sweep's jobs in its own folder, which machines of a cluster have in common.

    Attributes:
        folder: of the sweep that this process runs, None where it runs none.
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 - as hydra has it
        """Empties the folder: notes of an earlier sweep into the same place are not this one's."""
        Notes.folder = Path(config.hydra.sweep.dir).absolute() / ".jobs"
        shutil.rmtree(Notes.folder, ignore_errors=True)


def run_job(task: Callable[[], Any], explain: Callable[[BaseException], str | None]) -> Any:  # noqa: ANN401
    """Runs one job of a sweep to its end, good or bad, and writes a note of how it went.

    Hydra's basic launcher stops at a job that leaves with an exit status, and its sweeper at the first result that
    holds an exception; launchers of their own processes hand back nothing but results. So nothing is raised here,
    and the note tells the door. A sweeper that optimises takes the NaN for a failed trial.

    Args:
        task: the job.
        explain: the sentence for an error of the user's making, None for a fault of the program's own, which is
            logged with its traceback.

    Returns:
        What the task returned, NaN where it failed.
    """
    hydra = HydraConfig.get()
    job = Job(int(hydra.job.num), list(hydra.overrides.task))
    result = float("nan")
    try:
        result = task()
    except SystemExit as leave:
        if leave.code not in (None, 0):
            status = leave.code if isinstance(leave.code, int) else 1
            where = f"see the log in {hydra.runtime.output_dir}"
            reason = (
                f"some scenes could not be searched; {where}." if status == 2 else f"exit status {status}; {where}."
            )
            job = Job(job.number, job.settings, status, reason)
    except Exception as error:
        sentence = explain(error)
        log.error(sentence or "This job failed.", exc_info=sentence is None)
        job = Job(job.number, job.settings, 1, sentence or f"{type(error).__name__}: {error}")
    notes = Path(hydra.runtime.cwd) / hydra.sweep.dir / ".jobs"
    with replacing(notes / f"{job.number}.json") as temporary:
        temporary.write_text(json.dumps(asdict(job)), encoding="utf-8")
    return result


def report() -> int:
    """Says on standard error which jobs failed, one line each, named by the settings that not all jobs share.

    Returns:
        The exit status of all together: 1 where a job ended in an error, else the highest of theirs; 0 where this
        process ran no sweep.
    """
    if Notes.folder is None:
        return 0
    # One begun by a job that was killed meanwhile has another name.
    jobs = [Job(**json.loads(path.read_text(encoding="utf-8"))) for path in Notes.folder.glob("[0-9]*.json")]
    failed = sorted((job for job in jobs if job.status), key=lambda job: job.number)
    if not failed:
        return 0
    shared = set.intersection(*(set(job.settings) for job in jobs)) if len(jobs) > 1 else set()
    for job in failed:
        settings = " ".join(one for one in job.settings if one not in shared)
        print(f"error: job {job.number} ({settings}): {job.reason}".replace("\n", " "), file=sys.stderr)
    print(f"{len(failed)} of {len(jobs)} jobs did not end well; the others did.", file=sys.stderr)
    statuses = {job.status for job in failed}
    return 1 if 1 in statuses else max(statuses)
