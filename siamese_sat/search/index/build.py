"""Scenes into an index: those that are not in it, and those that have changed since."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from siamese_sat.data.scene import Scene
from siamese_sat.data.source import REMOTE
from siamese_sat.errors import InputError
from siamese_sat.progress import progress
from siamese_sat.search.index.embed import Embed, Head, Reading, readings
from siamese_sat.search.index.encoder import Encoded, Encoder
from siamese_sat.search.index.entry import Signature, degrees, scene_path, signature, to_json
from siamese_sat.search.index.schema import MAP, Entry, entries_of, fixed_binary, scene_schema, window_schema
from siamese_sat.search.index.store import EXACT_BELOW, Store
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.run import Workers

log = logging.getLogger(__name__)

# Windows a commit: small scenes share one, a large one takes several.
ROWS = 50_000
# Seconds after which scenes that are done are committed all the same.
PATIENCE = 60.0


@dataclass
class Built:
    """What became of the scenes.

    Attributes:
        added: paths.
        changed: paths of scenes that were in the index and have changed.
        kept: how many were in it as they are.
        failed: path: reason.
        windows: that were added.
        megapixels: of the scenes that were read.
        seconds: that it took.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    windows: int = 0
    megapixels: float = 0.0
    seconds: float = 0.0


def outdated(store: Store, paths: Sequence[str]) -> list[str]:
    """Those paths that are not in the index as they are now."""
    known = {row.path: row for row in entries_of(store.scenes())}
    return [p for p in map(scene_path, paths) if p not in known or not unchanged(known[p])]


def unchanged(entry: Entry) -> bool:
    """Whether a scene is as it was when it was indexed; of a remote one nothing is asked."""
    found = Signature(entry.size, entry.modified, entry.header)
    return entry.path.startswith(REMOTE) or found == signature(entry.path)


def build(
    store: Store,
    paths: Sequence[str],
    open_scene: Callable[[str], Scene],
    encoder: Encoder,
    radiometry_of: RadiometryOf,
    exact_below: int = EXACT_BELOW,
    workers: Workers | None = None,
) -> Built:
    """Embeds the scenes that are not in the index, each once; may be stopped and begun again at any moment.

    Args:
        store: open for writing, see `Store.writing`.
        paths: of the scenes.
        open_scene: looks a scene up.
        encoder: as the index was made with.
        radiometry_of: normalises a scene.
        exact_below: see `Store.finish`.
        workers: that share the scenes; None reads them here. Only this process writes, scenes in their order.

    Returns:
        What became of them; a scene that cannot be read is reported there.
    """
    started = time.perf_counter()
    known = {row.path: row for row in entries_of(store.scenes())}
    wanted = list(dict.fromkeys(map(scene_path, paths)))
    todo = [p for p in wanted if p not in known or not unchanged(known[p])]
    built = Built(kept=len(wanted) - len(todo))
    filler = _Filler(store, max((row.scene for row in known.values()), default=0))
    with progress() as bar:
        task = bar.add_task("Indexing", total=len(todo), unit="scenes")
        embed = Embed(open_scene, encoder, radiometry_of)
        for path, reading in zip(todo, _kept(readings(todo, embed, workers), filler.flush), strict=True):
            try:
                head, parts = reading()
                filler.begin(head, known.get(path))
                for part in parts:
                    filler.add(part)
                built.windows += filler.end()
            except InputError as error:
                filler.give_up()
                built.failed[path] = str(error)
                continue
            finally:
                bar.advance(task)
            (built.changed if path in known else built.added).append(path)
            built.megapixels += head.scene.megapixels
    filler.flush()
    if todo or store.indexed() < store.count():
        done = store.finish(exact_below)
        log.info("Index %s.", {"exact": "small enough to be compared whole"}.get(done, done))
    built.seconds = time.perf_counter() - started
    return built


def _kept(found: Iterator[Reading], keep: Callable[[], None]) -> Iterator[Reading]:
    """The same; where workers end before the work does, what came whole is kept first.

    Not round the loop: there a commit may be what failed, and half a scene may be at hand.
    """
    try:
        yield from found
    except (Exception, KeyboardInterrupt):
        keep()
        raise


class _Filler:
    """Collects windows and entries, and writes them in few commits: windows first, entries when theirs are there."""

    def __init__(self, store: Store, last: int) -> None:
        self.store, self.number = store, last
        self.rows: list[pa.Table] = []
        self.held, self.since, self.begun = 0, time.monotonic(), False
        self.entries: list[dict[str, Any]] = []
        self.replaced: list[int] = []
        self.unfinished: list[int] = []

    def begin(self, head: Head, former: Entry | None) -> None:
        self.number += 1
        self.scene, self.path, self.former, self.count = head.scene, head.path, former, 0
        self.signature, self.date, self.begun = head.signature, head.date, True

    def add(self, part: Encoded) -> None:
        rows = window_rows(part, self.number, self.scene, self.date)
        self.rows.append(rows)
        self.count += len(rows)
        self.held += len(rows)
        if self.held >= ROWS:
            self._write()

    def end(self) -> int:
        x0, y0, x1, y1 = self.scene.aoi
        bounds = degrees(self.scene, np.array([[x0, y0, x1, y1]], float))[0]
        self.entries.append(
            {
                "scene": self.number, "path": self.path, "size": self.signature.size,
                "modified": self.signature.modified, "header": self.signature.header, "windows": self.count,
                "date": self.date, "about": to_json(self.scene),
                **{k: None if np.isnan(v) else float(v) for k, v in zip(MAP, bounds, strict=True)},
            }
        )  # fmt: skip
        self.begun = False
        if self.former is not None:
            self.replaced.append(self.former.scene)
        if self.held >= ROWS or time.monotonic() - self.since > PATIENCE:
            self.flush()
        return self.count

    def give_up(self) -> None:
        """The scene at hand is left out; what of it has been written goes when the others are entered."""
        if not self.begun:
            return  # the number is still that of the scene before
        self.begun = False
        self.rows = [r for r in self.rows if len(r) and r["scene"][0].as_py() != self.number]
        self.held = sum(map(len, self.rows))
        self.unfinished.append(self.number)

    def flush(self) -> None:
        self._write()
        if self.entries:
            self.store.enter_scenes(pa.Table.from_pylist(self.entries, schema=scene_schema()), self.replaced)
        if self.unfinished:
            self.store.drop_windows(self.unfinished)
        self.entries, self.replaced, self.unfinished, self.since = [], [], [], time.monotonic()

    def _write(self) -> None:
        if self.rows:
            self.store.add_windows(pa.concat_tables(self.rows).combine_chunks())
        self.rows, self.held = [], 0


def window_rows(part: Encoded, number: int, scene: Scene, day: date | None) -> pa.Table:
    """Windows of one scene as rows of the window table."""
    count, dimensions = part.vectors.shape
    frame = pd.DataFrame(part.boxes, columns=["x_min", "y_min", "x_max", "y_max"]).astype("float32")
    frame.insert(0, "scene", np.full(count, number, np.int32))
    frame["scale"], frame["valid"] = np.int32(part.scale), part.valid.astype(np.float32)
    frame[list(MAP)] = degrees(scene, part.boxes)
    schema = window_schema(dimensions, part.cells.shape[1] if part.cells is not None else 0)
    columns = [pa.array(frame[n], f.type, from_pandas=True) for n, f in zip(frame, schema, strict=False)]
    flat = pa.array(part.vectors.astype(np.float16).ravel())
    columns += [pa.array([day] * count, pa.date32()), pa.FixedSizeListArray.from_arrays(flat, dimensions)]
    if part.cells is not None:
        columns.append(fixed_binary(part.cells))
    return pa.Table.from_arrays(columns, schema=schema)
