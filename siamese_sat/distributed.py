"""Training in several processes: which of them this is, and how they end together."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

import torch

from siamese_sat.errors import InputError

# As torchrun, Lightning, SLURM and whoever starts one process a machine by hand say it.
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
# As gloo and NCCL say that the other end of a connection went away; what else they raise is a fault of its own.
GONE = ("closed by peer", "reset by peer", "remote process exited")


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


def leave_group() -> None:
    """Leaves the group of a training's processes, where there is one; nothing can be exchanged after it.

    A process that ends while gloo's threads still let go of tensors is aborted by them, as they need the interpreter
    (pytorch/pytorch#179291), and Lightning, which leaves only NCCL's groups, then ends the other processes too.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_together(error: Exception, processes: Sequence[subprocess.Popen[bytes]]) -> Exception:
    """Ends the processes that this one started for its training, which has failed here: they would wait for it.

    Args:
        error: what ended the training here.
        processes: those started, ranks 1 and up.

    Returns:
        The error to raise: where another process went first, and so the connection to it, a sentence that says it and
        ends in what the connection's end was called here.
    """
    lost = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in GONE)
    if lost:
        time.sleep(1)  # the one that failed says why, and goes
    for process in processes:
        if process.poll() is None:
            process.kill()
    if not lost:
        return error
    first = str(error).splitlines()[0]
    return InputError(f"Another process of this training failed, for the reason that it gave; here it was: {first}")
