"""The index on disk or in an object store: windows, scenes, and what both were made with, as LanceDB tables.

A scene's entry is written after its windows, so it is in the index whole or not at all: windows without an entry are
those of a scene whose indexing (or removal) was cut short, no query shows them, and the next writer takes them away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from siamese_sat.search.index.lance import make_inverted
from siamese_sat.search.index.lock import only_writer
from siamese_sat.search.index.schema import BOX, MAP, PLACE, among, cells_of, scene_schema, vectors_of, window_schema
from siamese_sat.search.index.tables import Tables

FloatArray = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

ABOUT, SCENES, WINDOWS = "about", "scenes", "windows"
LEARNED, ORDINARY = "learned", "ordinary"
# Rows that are scanned faster than an inverted index pays for: some 20 ms on two cores.
EXACT_BELOW = 100_000
# An inverted index serves until the table has grown to so many times what its partitions were found in.
OUTGROWN = 4
# Windows drawn at random that a query is held against, to know what similarity is ordinary.
SAMPLE = 4096
# Windows that a scan compares about as fast as the inverted index finds them.
FEW = 50_000
AT_ONCE = timedelta(milliseconds=1)
KEPT = timedelta(minutes=10)  # for which replaced files are left to who reads them


@dataclass(frozen=True)
class Probe:
    """How thoroughly an inverted index is asked; without one every window is compared.

    Attributes:
        partitions: that are looked into, of about the square root of the number of windows; None: one for every
            36,000 windows, from 80 to 400.
        refine: times the wanted number of windows are compared by their whole vectors.
        exact: compare every window, whatever index there is.
    """

    partitions: int | None = None
    refine: int = 4
    exact: bool = False

    def partitions_of(self, windows: int) -> int:
        """How many are looked into where there are so many windows."""
        return self.partitions or min(max(windows // 36_000, 80), 400)


class Store:
    """An index over an archive.

    Args:
        uri: folder, or ``s3://bucket/path`` with the credentials in the environment.
    """

    def __init__(self, uri: str) -> None:
        self.tables = Tables(uri)
        self.uri = self.tables.uri
        self._windows: int | None = None

    @property
    def exists(self) -> bool:
        """Whether there is an index; False for an empty or missing folder."""
        with self.tables.telling("read"):
            return self.tables.has(ABOUT)

    def create(self, about: Mapping[str, Any], tensors: bytes, dimensions: int, cells: int = 0) -> None:
        """Makes an empty index.

        Args:
            about: what its vectors are made with, plain values.
            tensors: the same that are no plain values.
            dimensions: of a vector.
            cells: bytes of a window's own cells; 0 where none are kept.
        """
        import pyarrow as pa

        with self.tables.telling("made"):
            self.tables.forget()
            # The entry that makes it an index comes last; what an earlier attempt left before it is empty.
            self.tables.replace(WINDOWS, window_schema(dimensions, cells))
            self.tables.replace(SCENES, scene_schema())
            self.tables.replace(
                ABOUT, {"about": [json.dumps(about)], "tensors": pa.array([tensors], pa.large_binary())}
            )

    def about(self) -> tuple[dict[str, Any], bytes]:
        """What its vectors are made with, as `create` was told."""
        with self.tables.telling("read"):
            row = self.tables[ABOUT].to_arrow().to_pylist()[0]
        return json.loads(row["about"]), row["tensors"]

    def scenes(self) -> pd.DataFrame:
        """One row a scene, columns as in `scene_schema`, in the order of their numbers."""
        with self.tables.telling("read"):
            found: pd.DataFrame = self.tables[SCENES].to_arrow().to_pandas()
        return found.sort_values("scene", ignore_index=True)

    def count(self) -> int:
        """Windows, those without a scene's entry too."""
        with self.tables.telling("read"):
            return int(self.tables[WINDOWS].count_rows())

    def indexed(self) -> int:
        """Windows that the inverted index knows; 0 without one. The others are compared one by one."""
        with self.tables.telling("read"):
            table = self.tables[WINDOWS]
            names = [i.name for i in table.list_indices() if "vector" in i.columns]
            return int(table.index_stats(names[0]).num_indexed_rows) if names else 0

    @contextmanager
    def writing(self) -> Iterator[Self]:
        """Lets one process write, and takes away what an earlier one left unfinished.

        Raises:
            InputError: another process writes; in an object store that is not seen.
        """
        with only_writer(self.uri):
            self.tables.forget()  # another process may have written since they were opened
            if self.exists:
                with self.tables.telling("written"):
                    self._recover()
            yield self

    def add_windows(self, rows: Any) -> None:  # noqa: ANN401 - a pyarrow table
        """Adds windows (see `window_schema`); they count when their scene has its entry."""
        with self.tables.telling("written"):
            self.tables[WINDOWS].add(rows)

    def enter_scenes(self, rows: Any, replaced: Sequence[int] = ()) -> None:  # noqa: ANN401 - a pyarrow table
        """Enters scenes whose windows are all there, one commit for all.

        Args:
            rows: see `scene_schema`; an entry of the same path is replaced.
            replaced: numbers of the replaced entries, whose windows go.
        """
        with self.tables.telling("written"):
            known = self.tables[SCENES].merge_insert("path")
            known.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            self.drop_windows(replaced)

    def remove(self, numbers: Sequence[int]) -> None:
        """Takes scenes out by their numbers, entries first."""
        with self.tables.telling("written"):
            if len(numbers):
                self.tables[SCENES].delete(among("scene", numbers))
                self.drop_windows(numbers)

    def drop_windows(self, numbers: Sequence[int]) -> None:
        """Deletes the windows of scenes, by their numbers; their entries stay."""
        with self.tables.telling("written"):
            if len(numbers):
                self.tables[WINDOWS].delete(among("scene", numbers))

    def finish(self, exact_below: int = EXACT_BELOW) -> str:
        """Gathers small files, and makes or completes the inverted index where there are windows enough.

        Returns:
            What was done: ``exact``, ``built``, ``extended`` or ``rebuilt``.
        """
        with self.tables.telling("written"):
            table, count, done = self.tables[WINDOWS], self.count(), "exact"
            if count >= exact_below:
                indexed = self.indexed()
                outgrown = count > OUTGROWN * (self._learned() or count)
                # Partitions are learned from the rows of their day; rows appended since are sorted into them.
                done = "extended" if indexed and not outgrown else "rebuilt" if indexed else "built"
            if done in ("built", "rebuilt"):
                # Gathered before, not after: an inverted index would be written anew. What gathering has replaced is as
                # large as the table: it goes at once.
                self.tables.tidy(WINDOWS, AT_ONCE)
                make_inverted(table, count)
                self.tables.replace(LEARNED, {"windows": [count]})
            else:
                self.tables.tidy(WINDOWS, KEPT)
            if count:
                self.tables.replace(ORDINARY, self._draw())
            for name in (SCENES, *((ORDINARY,) if count else ())):
                self.tables.tidy(name, KEPT)
        return done

    def nearest(
        self,
        vector: npt.NDArray[np.floating[Any]],
        count: int,
        where: str | None = None,
        probe: Probe | None = None,
        placed: bool = False,
        narrow: bool = False,
    ) -> pd.DataFrame:
        """The windows most like a vector, best first.

        Args:
            vector: ``[D]``, of any length.
            count: how many.
            where: an SQL condition on the columns of `window_schema`; it is applied first.
            probe: how thoroughly.
            placed: whether the columns `MAP` are wanted too: each column is a read of its own.
            narrow: whether few windows may meet the condition: they are then counted first. Up to `FEW` are all
                compared; of more, as many partitions are looked into as hold as many of them as are compared without
                a condition.

        Returns:
            Columns `BOX` but for the last, `MAP` where they are wanted, and ``similarity``, the cosine, -1..1.
        """
        probe = probe or Probe()
        # Not ``scale``: of a column whose values are mostly the same, a few rows take as long as all else.
        columns = [*BOX[:-1], *(MAP if placed else ()), "_distance"]

        def ask() -> Any:  # noqa: ANN401 - a LanceDB query
            query = self.tables[WINDOWS].search(np.asarray(vector, np.float16), vector_column_name="vector")
            query = query.distance_type("cosine").limit(count).select(columns)
            return query.where(where, prefilter=True) if where else query

        with self.tables.telling("read"):
            total = self._total()
            meeting = int(self.tables[WINDOWS].count_rows(where)) if where and narrow else total
            if probe.exact or (meeting < total and meeting <= FEW):
                table = ask().bypass_vector_index().to_arrow()
            else:
                partitions = math.ceil(probe.partitions_of(total) * total / max(meeting, 1))
                table = ask().nprobes(partitions).refine_factor(probe.refine).to_arrow()
        # Column by column: to_pandas takes as long as the search of a partition.
        found = pd.DataFrame({name: table[name].to_numpy() for name in columns[:-1]})
        found["similarity"] = 1.0 - table["_distance"].to_numpy().astype(float)
        return found

    def at(self, x: float, y: float, where: str | None = None) -> pd.DataFrame:
        """The windows that hold a place, that in whose middle it lies first, with their vectors.

        Args:
            x: longitude in degrees.
            y: latitude in degrees.
            where: see `nearest`.
        """
        inside = f"map_x_min <= {x!r} AND map_x_max >= {x!r} AND map_y_min <= {y!r} AND map_y_max >= {y!r}"
        with self.tables.telling("read"):
            ask = self.tables[WINDOWS].search().where(f"{inside} AND {where}" if where else inside)
            found: pd.DataFrame = ask.select([*PLACE, "vector"]).to_arrow().to_pandas()
        west, south, east, north = (found[c].to_numpy(float) for c in MAP)
        off = np.hypot((west + east) / 2 - x, (south + north) / 2 - y)
        return found.iloc[np.argsort(off, kind="stable")].reset_index(drop=True)

    def cells(self, scene: int, scale: int, box: tuple[float, float, float, float]) -> tuple[FloatArray, Bytes]:
        """Where the windows of a size begin that lie in a part of a scene, ``[n, 2]`` pixels, and their cells.

        Args:
            scene: its number.
            scale: side of the windows.
            box: x_min, y_min, x_max, y_max in pixels, which a window's corners must lie in.

        Returns:
            First pixels, and ``[n, bytes]``.
        """
        x0, y0, x1, y1 = box
        where = f"scene = {int(scene)} AND scale = {int(scale)}"
        where += f" AND x_min >= {x0!r} AND x_max <= {x1!r} AND y_min >= {y0!r} AND y_max <= {y1!r}"
        with self.tables.telling("read"):
            found = self.tables[WINDOWS].search().where(where).select(["x_min", "y_min", "cells"]).to_arrow()
        firsts = np.stack([found[c].to_numpy() for c in ("x_min", "y_min")], axis=1).astype(np.float64)
        return firsts, cells_of(found)

    def ordinary(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Vectors ``[n, D]`` of windows drawn at random, and their sizes ``[n]``; kept apart, cheap to read."""
        with self.tables.telling("read"):
            kept = self.tables[ORDINARY].to_arrow() if self.tables.has(ORDINARY) else self._draw()
            return vectors_of(kept), kept["scale"].to_numpy().astype(np.int32)

    def batches(self, columns: Sequence[str], where: str | None = None) -> Iterator[Any]:
        """All windows as pyarrow record batches, in no order."""
        with self.tables.telling("read"):
            ask = self.tables[WINDOWS].search().select(list(columns))
            yield from (ask.where(where) if where else ask).to_batches()

    def _draw(self) -> Any:  # noqa: ANN401 - a pyarrow table
        table = self.tables[WINDOWS]
        total = int(table.count_rows())
        rows = np.random.default_rng(0).choice(total, min(SAMPLE, total), replace=False)
        return table.take_offsets(np.sort(rows).tolist()).select(["scale", "vector"]).to_arrow()

    def _learned(self) -> int | None:
        """Windows from which the inverted index's partitions were learned."""
        if not self.tables.has(LEARNED):
            return None
        return int(self.tables[LEARNED].to_arrow()["windows"][0].as_py())

    def _recover(self) -> None:
        """Deletes windows whose scene has no entry; that there are any shows in two counts."""
        scenes = self.tables[SCENES].to_arrow()
        if self.tables[WINDOWS].count_rows() == sum(scenes["windows"].to_pylist()):
            return
        there: set[int] = set()
        for batch in self.tables[WINDOWS].search().select(["scene"]).to_batches():
            there.update(batch["scene"].unique().to_pylist())
        self.drop_windows(sorted(there - set(scenes["scene"].to_pylist())))

    def _total(self) -> int:
        """Windows when this was first asked: a measure, for which later ones do not count."""
        if self._windows is None:
            self._windows = int(self.tables[WINDOWS].count_rows())
        return self._windows
