"""A training that is a command of its own: one of several processes, within a sweep or a search for settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from siamese_sat.errors import InputError
from siamese_sat.hparams.grammar import quoted
from siamese_sat.training import METRICS, TrainingResult

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
STARTED = ("RANK", "LOCAL_RANK", "SLURM_NTASKS", "NODE_RANK")  # whoever sets these has started the processes


def starts_processes(cfg: DictConfig) -> bool:
    """Whether a training by these settings would start further processes: Lightning runs the command again for each.

    Args:
        cfg: as ``conf/train.yaml`` composes it; looked at is ``trainer``.
    """
    several = any(OmegaConf.select(cfg, f"trainer.{name}") not in (None, 1, "1") for name in ("devices", "num_nodes"))
    return several and not any(name in os.environ for name in STARTED)


def train_apart(overrides: Sequence[str], folder: str | Path) -> TrainingResult:
    """Runs ``train.py`` as a command of its own, for a training of several processes that is one job of many.

    Lightning starts the processes of a training by running its command again: within a sweep that would be the whole
    sweep. And what one training leaves behind in a process (ranks, ports) stays out of the next.

    Args:
        overrides: settings as on the command line.
        folder: where it writes, ``paths.output_dir`` of these settings.

    Raises:
        InputError: it ended with an error; the sentence is its own, where it had one.
    """
    command = [sys.executable, str(TRAIN), *overrides, f"hydra.run.dir={quoted(str(folder))}"]
    folder, sentence = Path(folder), ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            sys.stderr.write(line)
            if line.startswith("error: "):
                sentence = sentence or line.removeprefix("error: ").strip()
    if run.returncode:
        raise InputError(sentence or f"The training ended with status {run.returncode}; see the log in {folder}.")
    figures = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    pruned, checkpoint = bool(figures.pop("pruned")), folder / figures.pop("checkpoint")
    return TrainingResult(checkpoint, folder, figures, pruned)
