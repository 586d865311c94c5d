"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siamese_sat.data.source import REMOTE
from siamese_sat.errors import InputError


@contextmanager
def only_writer(uri: str) -> Iterator[None]:
    """Holds a folder against other processes; in an object store it holds nothing.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    if uri.startswith(REMOTE):
        yield
        return
    try:
        Path(uri).mkdir(parents=True, exist_ok=True)
        handle = os.open(Path(uri) / ".writing", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise InputError(f"{uri}: no index can be written here ({error.strerror}); choose another place.") from error
    try:
        # The system lets go of it when the process ends, however it ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise InputError(f"{uri}: another process writes to this index; wait until it is done.") from error
    try:
        yield
    finally:
        os.close(handle)
