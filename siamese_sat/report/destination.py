"""Where results go: a folder, or an object store by way of one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from siamese_sat.data.remote import S3, check_bucket, upload
from siamese_sat.errors import InputError
from siamese_sat.progress import track

# Written last: where it lies, the others lie too.
LAST = "detections.csv"

log = logging.getLogger(__name__)


@contextmanager
def destined(target: str) -> Iterator[Path]:
    """A folder to write to; what is in it at the end is copied to ``s3://``, file by file, each whole or not at all.

    Formats such as GeoPackage are written by seeking, which an object store cannot do.

    Args:
        target: a folder, which is made, or ``s3://bucket/path``.

    Raises:
        InputError: it cannot be written. Whatever ends the block or the copying, what has been written stays in the
            local folder, which is named then.
    """
    if not target.startswith(S3):
        folder = Path(target)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{target} cannot be made ({error.strerror}); choose another place.") from error
        yield folder
        return
    check_bucket(target)
    folder = Path(mkdtemp(prefix="siamese-sat-"))
    try:
        yield folder
        files = sorted(_files(folder), key=lambda p: (p.name == LAST, p))
        for file in track(files, "Uploading", unit="files"):
            try:
                upload(file, named(file, folder, target))
            except InputError as error:
                raise InputError(f"{str(error).rstrip('.')}; all results lie in {folder}.") from error
    except BaseException:
        if _files(folder):
            log.error("What had been written lies in %s.", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def named(file: Path, folder: Path, target: str) -> str:
    """The name of a file of `destined`'s folder at its destination."""
    return f"{target.rstrip('/')}/{file.relative_to(folder).as_posix()}"
