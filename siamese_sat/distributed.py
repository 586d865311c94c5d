"""Training in several processes: which of them this is, and a training that is a command of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from siamese_sat.errors import InputError

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
# As torchrun, Lightning, SLURM and whoever starts one process a machine by hand say it.
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
STARTED = ("RANK", "LOCAL_RANK", "SLURM_NTASKS", "NODE_RANK")


def is_first() -> bool:
    """Whether this process is the one of its training that writes files and speaks; alone it is.

    The environment is asked, so that the answer stands before the processes have found each other.
    """
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def ranks() -> tuple[int, int]:
    """This process's number and how many there are, ``(0, 1)`` where it is alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def starts_processes(cfg: DictConfig) -> bool:
    """Whether a training by these settings would start further processes: Lightning runs the command again for each.

    Args:
        cfg: as ``conf/train.yaml`` composes it; looked at is ``trainer``.
    """
    several = any(OmegaConf.select(cfg, f"trainer.{name}") not in (None, 1, "1") for name in ("devices", "num_nodes"))
    return several and not any(name in os.environ for name in STARTED)


def end_together(error: Exception, processes: Sequence[subprocess.Popen[bytes]]) -> Exception:
    """Ends the processes that this one started for its training, which has failed here: they would wait for it.

    Args:
        error: what ended the training here.
        processes: those started, ranks 1 and up.

    Returns:
        The error to raise: where another process went first, and so the connection to it, a sentence that says it.
    """
    lost = isinstance(error, RuntimeError) and any(name in str(error).lower() for name in ("gloo", "nccl", "peer"))
    if lost:
        time.sleep(1)  # the one that failed says why, and goes
    for process in processes:
        if process.poll() is None:
            process.kill()
    return InputError("Another process of this training failed, for the reason that it gave.") if lost else error


def train_apart(overrides: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Runs ``train.py`` as a command of its own, for a job of several that itself is one of several processes.

    Lightning starts the processes of a training by running its command again: within a sweep that would be the whole
    sweep. And what one training leaves behind in a process (ranks, ports) stays out of the next.

    Args:
        overrides: settings as on the command line.
        folder: where it writes.
        environment: further variables.

    Raises:
        InputError: it ended with an error; the sentence is its own, where it had one.
    """
    command = [sys.executable, str(TRAIN), *overrides, f"hydra.run.dir={quoted(str(folder))}"]
    sentence = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}) as run:
        assert run.stderr is not None
        for line in run.stderr:
            sys.stderr.write(line)
            if line.startswith("error: "):
                sentence = sentence or line.removeprefix("error: ").strip()
    if run.returncode:
        raise InputError(sentence or f"The training ended with status {run.returncode}; see the log in {folder}.")


def quoted(text: str) -> str:
    """A string as hydra's grammar of overrides wants it between quotes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'") if "'" in text or text.endswith("\\") else text
    return f"'{escaped}'"
