"""Prepared work, sent to another process and another device.

Preparing it there again would read the same scenes once more for each worker, and give the same only as long as every
worker draws the same random places; what is sent is the same.
"""

from __future__ import annotations

import io
import pickle
from contextvars import ContextVar
from typing import Any

import torch

# The device on which what is being unpacked is to lie.
_HERE: ContextVar[torch.device] = ContextVar("device")


def _here() -> torch.device:
    return _HERE.get()


class _Pickler(pickle.Pickler):
    """Writes down every device as wherever it will be unpacked."""

    def reducer_override(self, thing: Any) -> Any:  # noqa: ANN401 - pickle's own terms
        return (_here, ()) if isinstance(thing, torch.device) else NotImplemented


class _Module:
    """What `torch.save` wants of a module that pickles."""

    Pickler = _Pickler


def pack(thing: Any) -> bytes:  # noqa: ANN401 - anything that can be pickled
    """A thing, its tensors and its models as bytes, for `unpack` in a process of ours and nowhere else."""
    buffer = io.BytesIO()
    torch.save(thing, buffer, pickle_module=_Module)
    return buffer.getvalue()


def unpack(data: bytes, device: torch.device) -> Any:  # noqa: ANN401 - as it was packed
    """What was packed, on a device: every tensor lies there, and every device that it knows is this one."""
    token = _HERE.set(device)
    try:
        # Bytes of our own process, never a file: nothing else could be in them.
        return torch.load(io.BytesIO(data), map_location=device, weights_only=False)
    finally:
        _HERE.reset(token)
