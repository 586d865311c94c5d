"""Tiles of scenes as they are stored, with the windows that lie in them: all that search reads, and no arithmetic."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siamese_sat.data.radiometry import Radiometry, RadiometryOf
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.search import window as grid
from siamese_sat.search.ahead import ahead
from siamese_sat.search.part import Part, share


@dataclass(frozen=True)
class Job:
    """A scene, to be seen through windows of one size.

    Attributes:
        scene: read tile by tile.
        window: width and height in scene pixels.
        part: of the scene's tiles.
    """

    scene: Scene
    window: tuple[int, int]
    part: Part = (0, 1)


@dataclass(frozen=True)
class Failure:
    """A job that cannot be done, or not to its end.

    Attributes:
        job: its number.
        error: what to tell the user.
    """

    job: int
    error: InputError


@dataclass(frozen=True)
class StoredTile:
    """A part of a scene that is read at once.

    Attributes:
        job: number of the job that it is read for.
        pixels: ``[C, h, w]`` as stored, in host memory; the band mean where nothing valid is.
        radiometry: of the scene.
        level: height and width to which the tile is resized.
        seen: ``[2, 2]`` row and column, in the resized tile, of the first pixel that a window of the scene shows, and
            of the one after the last.
        corners: ``[n, 2]`` the same of the first pixel of each window.
        boxes: ``[n, 4]`` of the windows in scene pixels.
        valid: ``[n]`` valid part of each, 0..1.
    """

    job: int
    pixels: Tensor
    radiometry: Radiometry
    level: tuple[int, int]
    seen: npt.NDArray[np.int64]
    corners: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    valid: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Grid:
    """How scenes are cut: see `read_tiles`."""

    size: int
    stride: int
    around: int | None

    def tiles(self, job: Job) -> Sequence[tuple[grid.AxisTile, grid.AxisTile]]:
        """Row and column of each of a job's tiles, in order."""
        x0, y0, x1, y1 = job.scene.aoi
        columns = self._along(x1 - x0, job.window[0])
        return share([(r, c) for r in self._along(y1 - y0, job.window[1]) for c in columns], job.part)

    def _along(self, length: int, window: int) -> list[grid.AxisTile]:
        if self.around is None:
            return list(grid.axis_tiles(length, window, self.size, self.stride))
        return list(grid.dense_tiles(length, window, self.size, self.stride, self.around))


def read_tiles(
    jobs: Sequence[Job],
    radiometry_of: RadiometryOf,
    size: int,
    stride: int,
    min_valid: float,
    pinned: bool = False,
    around: int | None = None,
    readers: int = 1,
) -> Generator[StoredTile | Failure, None, None]:
    """Every tile of every job that has a window worth comparing, in order.

    Args:
        jobs: done one after the other; who could not read a scene does not open it again.
        radiometry_of: of each scene; asked when the scene's turn comes, never twice at once.
        size: pixels a side that a window is resized to.
        stride: of those pixels, between windows.
        min_valid: windows with a smaller valid part are left out.
        pinned: whether to put pixels into memory that a GPU fetches by itself.
        around: None for windows that are cut out; else see `siamese_sat.search.window.dense_tiles`.
        readers: threads that read side by side, each every so many-th tile of a scene through a handle of its own;
            one of them reads scenes whose blocks are whole rows, which each would decode anew. 1 reads in the caller's.
    """
    cut, lock = _Grid(size, stride, around), threading.Lock()

    def one_by_one(scene: Scene) -> Radiometry:
        with lock:
            return radiometry_of(scene)

    with contextlib.ExitStack() as stack:
        turns = [_turn(jobs, one_by_one, cut, min_valid, pinned, (k, readers)) for k in range(readers)]
        sources = [stack.enter_context(contextlib.closing(ahead(turn) if readers > 1 else turn)) for turn in turns]
        failed: set[str] = set()
        for job in jobs:
            for i in range(len(cut.tiles(job))):
                found = next(sources[0 if job.scene.whole_rows else i % readers])
                if found is None or job.scene.path in failed:
                    continue
                if isinstance(found, Failure):
                    failed.add(job.scene.path)
                yield found


def _turn(
    jobs: Sequence[Job],
    radiometry_of: RadiometryOf,
    cut: _Grid,
    min_valid: float,
    pinned: bool,
    turn: tuple[int, int],
) -> Generator[StoredTile | Failure | None, None, None]:
    """One reader's: of each job every so many-th tile, None in the place of those that have nothing worth comparing."""
    first, step = turn
    failed: set[str] = set()
    for number, job in enumerate(jobs):
        tiles = cut.tiles(job)
        mine = (tiles if first == 0 else []) if job.scene.whole_rows else tiles[first::step]
        done = 0
        if mine and job.scene.path not in failed:
            try:
                for tile in _tiles(number, job, radiometry_of(job.scene), mine, cut.size, min_valid, pinned):
                    yield tile
                    done += 1
            except InputError as error:
                failed.add(job.scene.path)
                yield Failure(number, error)
                done += 1
        for _ in range(done, len(mine)):
            yield None


def _tiles(
    number: int,
    job: Job,
    radiometry: Radiometry,
    tiles: Sequence[tuple[grid.AxisTile, grid.AxisTile]],
    size: int,
    min_valid: float,
    pinned: bool,
) -> Generator[StoredTile | None, None, None]:
    window, (x0, y0, x1, y1) = job.window, job.scene.aoi
    # A scene smaller than a window stands in the middle of the only one.
    left, top = max(0, window[0] - (x1 - x0)) // 2, max(0, window[1] - (y1 - y0)) // 2
    with SceneReader(job.scene) as reader:
        for row, column in tiles:
            raw, valid = reader.read(
                x0 - left + column.source, y0 - top + row.source, column.source_length, row.source_length
            )
            if not valid.any():
                yield None
                continue
            found = grid.boxes(column.places, row.places, window, size, (x0 - left, y0 - top))
            inside = _valid_share(valid, row, column, found, job.scene, size)
            keep = inside >= min_valid - 1e-6
            if not keep.any():
                yield None
                continue
            pixels = torch.from_numpy(radiometry.fill(raw, valid))
            at = np.argwhere(keep)
            yield StoredTile(
                job=number,
                pixels=pixels.pin_memory() if pinned else pixels,
                radiometry=radiometry,
                level=(row.level_length, column.level_length),
                seen=np.array([row.seen, column.seen]).T,
                corners=np.stack([row.offsets[at[:, 0]], column.offsets[at[:, 1]]], axis=1),
                boxes=found[keep.ravel()],
                valid=inside.ravel().clip(0, 1)[keep.ravel()],
            )


def _valid_share(
    valid: npt.NDArray[np.bool_],
    row: grid.AxisTile,
    column: grid.AxisTile,
    boxes: npt.NDArray[np.float64],
    scene: Scene,
    size: int,
) -> npt.NDArray[np.float64]:
    """The valid part of the windows ``[rows, columns]`` of a tile; of those beyond the scene, of what is inside."""
    shape = len(row.offsets), len(column.offsets)
    if valid.all():
        return np.ones(shape)
    total = valid.view(np.uint8)
    for tile in (row, column):
        ends = np.stack([tile.offsets, tile.offsets + size]) * tile.source_length / tile.level_length
        whole = ends.astype(int)
        part, further = (ends - whole)[..., None], np.minimum(whole + 1, tile.source_length)
        until, at = _sums_until(total, np.stack([whole, further]))
        found = until[at[0]] * (1 - part) + until[at[1]] * part
        total = (found[1] - found[0]).T
    x0, y0, x1, y1 = scene.aoi
    inside = np.minimum(boxes[:, 2:], [x1, y1]) - np.maximum(boxes[:, :2], [x0, y0])
    return np.asarray(total / np.maximum(inside.prod(axis=1).reshape(shape), 1e-9))


def _sums_until(
    values: npt.NDArray[Any], ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sums of the first rows of ``[L, W]``: of as many as each of ``ends`` says, and where each one's sum stands.

    Only between the ends is summed, once: windows have few borders beside the pixels between them.
    """
    places, at = np.unique(np.append(0, ends), return_inverse=True)
    until = np.zeros((len(places), values.shape[1]))
    if len(places) > 1:
        parts = np.add.reduceat(values[: places[-1]], places[:-1], axis=0, dtype=np.float64)
        np.cumsum(parts, axis=0, out=until[1:])
    return until, at[1:].reshape(ends.shape)
