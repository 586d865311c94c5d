"""A result file is either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siamese_sat.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` and moves it there when the block ends well.

    The temporary file has the same suffix (drivers look at it), is made by whoever writes it (so it gets the
    user's own permissions) and is removed when the block fails; a file that was there before then stays.

    Raises:
        InputError: the folder cannot be made or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        with suppress(OSError):  # nothing to remove after success, or under a parent that is no folder
            temporary.unlink()
