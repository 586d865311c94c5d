"""LanceDB tables by name, in a folder or an object store; what goes wrong with them is told in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from siamese_sat.data.source import REMOTE
from siamese_sat.errors import InputError
from siamese_sat.search.index.lance import lancedb_module

# Where in its own source LanceDB found an error; nobody who reads the sentence can use it.
SOURCE = re.compile(r",? *\S*/[\w.-]+/src/\S*")


class Tables:
    """The tables of one place, opened when they are first asked for.

    Args:
        uri: folder, or ``s3://bucket/path`` with the credentials in the environment.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri if uri.startswith(REMOTE) else str(Path(uri).expanduser())
        self._open: dict[str, Any] = {}
        self._connection: Any = None

    @property
    def remote(self) -> bool:
        """Whether they are in an object store."""
        return self.uri.startswith(REMOTE)

    def has(self, name: str) -> bool:
        """Whether there is such a table; False for a missing folder, which stays missing."""
        if not self.remote and not (Path(self.uri) / f"{name}.lance").is_dir():
            return False  # connecting would make the folder
        return name in self._base.list_tables().tables

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - lancedb is imported when it is used
        """A LanceDB table, as it was when it was opened."""
        if name not in self._open:
            self._open[name] = self._base.open_table(name)
        return self._open[name]

    def replace(self, name: str, content: Any) -> None:  # noqa: ANN401 - a pyarrow table, schema, or columns of a table
        """Makes a table anew; a schema makes an empty one."""
        import pyarrow as pa

        if isinstance(content, pa.Schema):
            made = self._base.create_table(name, schema=content, mode="overwrite")
        else:
            rows = content if isinstance(content, pa.Table) else pa.table(content)
            made = self._base.create_table(name, rows, mode="overwrite")
        self._open[name] = made

    def forget(self) -> None:
        """Opens them anew when they are next asked for: another process may have written."""
        self._open.clear()

    def tidy(self, name: str, kept: timedelta) -> None:
        """Gathers small files, completes indexes, and deletes what is older than ``kept`` and in no use."""
        # Files that no version names are of a process that was killed: here, only one writes at a time.
        self[name].optimize(cleanup_older_than=kept, delete_unverified=not self.remote)

    def bytes(self) -> int | None:
        """What all files take, earlier versions too; None in an object store, which does not tell cheaply."""
        if self.remote:
            return None
        return sum(f.stat().st_size for f in Path(self.uri).rglob("*") if f.is_file())

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Turns what goes wrong into a sentence: the index cannot be ``what``.

        Raises:
            InputError: in place of LanceDB's own errors.
        """
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            reason = SOURCE.sub("", reason)
            raise InputError(
                f"{self.uri}: the index cannot be {what} ({reason[:200]}); check the path, its rights and, in an "
                f"object store, the credentials."
            ) from error

    @property
    def _base(self) -> Any:  # noqa: ANN401 - lancedb is imported when it is used
        if self._connection is None:
            self._connection = lancedb_module().connect(self.uri)
        return self._connection
