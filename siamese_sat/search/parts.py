"""Scenes that a search is done with, kept on disk until its results are written, so that it can be interrupted."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from siamese_sat.errors import InputError
from siamese_sat.report.files import replacing
from siamese_sat.search.detect import Candidates

log = logging.getLogger(__name__)

# The folder of a question, and nothing else that may lie beside it, is ours to remove.
QUESTION = re.compile(r"[0-9a-f]{64}")
# What another search kept and nobody has gone on with for so long is removed.
FORGOTTEN_S = 7 * 86_400
DIGEST = hashlib.sha256().digest_size


@dataclass
class Parts:
    """One file per scene, in a folder that is named by the question, so that two searches never mix.

    Attributes:
        folder: of one search; need not be there.
        question: a `siamese_sat.question.fingerprint` of all that decides what is found.
        writing: whether scenes are still kept; not after one could not be written.
    """

    folder: Path
    question: str
    writing: bool = True

    def taken(self, names: Iterable[str]) -> dict[str, Candidates]:
        """The places of those scenes that an earlier run was done with.

        Args:
            names: of all scenes.
        """
        names = list(names)
        every = {name: self._read(name) for name in names} if self._mine.is_dir() else {}
        found = {name: places for name, places in every.items() if places is not None}
        if not found and self._others():
            log.info(
                "%s: what an earlier run had done is not used, for its settings, exemplars, scenes or program were "
                "others; all scenes are searched.", self.folder,
            )  # fmt: skip
        if found:
            log.info(
                "%d of %d scene(s) are taken from an earlier run, which was interrupted; %d are left to search.",
                len(found), len(names), len(names) - len(found),
            )  # fmt: skip
        return found

    def keep(self, name: str, found: Candidates) -> None:
        """Writes the places of a scene, whole or not at all; where that fails the search goes on without.

        Args:
            name: of the scene.
            found: all of its places, suppressed.
        """
        if not self.writing:
            return
        content = io.BytesIO()
        np.savez(content, **{name: value for name, value in vars(found).items() if value is not None})
        try:
            with replacing(self._file(name)) as temporary:
                temporary.write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())
        except InputError as error:
            # Hours of work are not given up for want of what would only have saved them.
            self.writing = False
            log.warning("%s Interrupted from now on, this search would do the scenes that follow again.", error)

    def remove(self) -> None:
        """Removes what was kept: the results are written."""
        shutil.rmtree(self._mine, ignore_errors=True)
        # Those of others may be at work, or be asked again with the right settings; not after so long.
        for folder in self._others():
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > FORGOTTEN_S:
                    shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # it is not there, or others' files are in it
            self.folder.rmdir()

    @property
    def _mine(self) -> Path:
        return self.folder / self.question

    def _file(self, name: str) -> Path:
        # Names may be whole paths, and of any letters.
        return self._mine / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()}.part"

    def _read(self, name: str) -> Candidates | None:
        """What was kept of a scene; None where nothing was, or where it is damaged."""
        file = self._file(name)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read (%s): %s is searched again.", file, error.strerror or error, name)
            return None
        # Of bytes that are not as they were written nothing is believed, not even where an array ends.
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            log.warning("%s is damaged: %s is searched again.", file, name)
            return None
        with np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False) as held:
            return Candidates(**{field.name: held[field.name] for field in fields(Candidates) if field.name in held})

    def _others(self) -> list[Path]:
        """Folders of other questions."""
        try:
            return [p for p in self.folder.iterdir() if QUESTION.fullmatch(p.name) and p.name != self.question]
        except OSError:
            return []  # most often there is none
