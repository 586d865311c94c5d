"""Scenes in, windows and their embeddings out: the one place where search runs the network on windows.

Tiles are read and decoded in a thread of their own while the network is at the last ones. They travel to the device as
they are stored; there scale, mean, deviation and the projection of the bands are one affine map, and windows are views
that are copied once, into their batch. Batches are full across the borders of tiles, of passes and of scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry, RadiometryOf
from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import Embedder
from siamese_sat.search.ahead import ahead
from siamese_sat.search.part import Part
from siamese_sat.search.tile import Failure, Job, StoredTile, read_tiles

# Tiles that are read before they are asked for.
AHEAD = 2
# Threads that read for a GPU, which is faster than one of them decodes; for a CPU one is fast enough.
READERS = 4


@dataclass(frozen=True)
class WindowBatch:
    """Windows of one scene and size.

    Attributes:
        boxes: ``[n, 4]`` in scene pixels.
        valid: ``[n]`` valid part of each, 0..1; of a window that reaches beyond the scene, of what lies inside.
        chips: ``[n, C, S, S]`` normalised, on the device.
    """

    boxes: npt.NDArray[np.float64]
    valid: npt.NDArray[np.float64]
    chips: Tensor


@dataclass(frozen=True)
class Embedded:
    """Windows of one job or several, embedded together.

    Attributes:
        jobs: ``[n]`` number of each window's job, ascending.
        boxes: ``[n, 4]`` in scene pixels.
        valid: ``[n]`` see `WindowBatch`.
        vectors: ``[n, D]`` fp32 of unit length, on the device.
    """

    jobs: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    valid: npt.NDArray[np.float64]
    vectors: Tensor


@dataclass(frozen=True)
class _Cut:
    jobs: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    valid: npt.NDArray[np.float64]
    chips: Tensor


@dataclass(frozen=True)
class Engine:
    """Runs an embedder over scenes.

    Attributes:
        embedder: in evaluation mode, on the device; computes in its own precision, see `DeployedEmbedder`.
        device: where to compute.
        dtype: precision of what is computed on its features.
        batch_size: windows a batch.
        min_valid: windows with a smaller valid part are not compared; of a window that reaches beyond the scene, what
            lies inside counts.
    """

    embedder: Embedder | DeployedEmbedder
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_size: int = 64
    min_valid: float = 0.5

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.min_valid <= 1:
            raise InputError(
                f"search.batch_size={self.batch_size} must be 1 or more, search.min_valid={self.min_valid} lie between "
                f"0 and 1."
            )

    @torch.inference_mode()
    def embed(self, chips: Tensor) -> Tensor:
        """Embeddings ``[n, D]`` in fp32 of normalised chips ``[n, C, S, S]``."""
        found: Tensor = self.embedder(chips.contiguous(memory_format=torch.channels_last))
        return found.float()

    def windows(
        self,
        scene: Scene,
        radiometry: Radiometry,
        window: tuple[int, int],
        size: int,
        stride: int,
        part: Part = (0, 1),
    ) -> Iterator[WindowBatch]:
        """Cuts a scene into windows, full batches across tile borders.

        Args:
            scene: read tile by tile.
            radiometry: normalises it.
            window: width and height in scene pixels.
            size: pixels a side that a window is resized to.
            stride: of those pixels, between windows.
            part: of the scene's tiles.

        Raises:
            InputError: the scene cannot be read.
        """
        for found in self._cut([Job(scene, window, part)], lambda _: radiometry, size, stride, self._normalised):
            if isinstance(found, Failure):
                raise found.error
            yield WindowBatch(found.boxes, found.valid, found.chips)

    def vectors(
        self, jobs: Sequence[Job], radiometry_of: RadiometryOf, size: int, stride: int
    ) -> Iterator[Embedded | Failure]:
        """Embeds the windows of all jobs in their order, in batches that are full across jobs.

        Args:
            jobs: scenes and the windows to see them through; the next one's first tiles are read before one is done.
            radiometry_of: normalises a scene.
            size: pixels a side that a window is resized to.
            stride: of those pixels, between windows.

        Returns:
            All windows of a job have come when one of a later job has, or the end. A job that fails is told as soon as
            it is known, possibly before windows of earlier jobs.
        """
        projects = isinstance(self.embedder, DeployedEmbedder) and self.embedder.projects
        image_of, embed = (self._projected, self._finish) if projects else (self._normalised, self.embed)
        for found in self._cut(jobs, radiometry_of, size, stride, image_of):
            if isinstance(found, Failure):
                yield found
            else:
                yield Embedded(found.jobs, found.boxes, found.valid, embed(found.chips))

    @torch.inference_mode()
    def _finish(self, chips: Tensor) -> Tensor:
        assert isinstance(self.embedder, DeployedEmbedder)
        return self.embedder.embed_projected(self._filled(chips))[: len(chips)]

    def embed_filled(self, chips: Tensor) -> Tensor:
        """As `embed`, for windows of scenes: the same to the last bit, however these are shared out."""
        return self.embed(self._filled(chips))[: len(chips)]

    def _filled(self, chips: Tensor) -> Tensor:
        """Always a full batch: in a smaller one the last bits of a vector are others.

        What is in it besides depends on how scenes are shared out.
        """
        lacking = self.batch_size - len(chips)
        return F.pad(chips, (0, 0, 0, 0, 0, 0, 0, lacking)) if lacking else chips

    def _cut(
        self,
        jobs: Sequence[Job],
        radiometry_of: RadiometryOf,
        size: int,
        stride: int,
        image_of: Callable[[StoredTile], Tensor],
    ) -> Iterator[_Cut | Failure]:
        """Windows of all jobs in batches."""
        held: list[_Cut] = []
        count = 0
        for tile in self.tiles(jobs, radiometry_of, size, stride):
            if isinstance(tile, Failure):
                yield tile
                continue
            image, start = image_of(tile), 0
            while start < len(tile.boxes):
                stop = min(len(tile.boxes), start + self.batch_size - count)
                part = slice(start, stop)
                jobs_of = np.full(stop - start, tile.job)
                # A copy: a view would keep its whole tile in memory until the batch is full.
                held.append(_Cut(jobs_of, tile.boxes[part], tile.valid[part], cut(image, tile.corners[part], size)))
                count, start = count + stop - start, stop
                if count == self.batch_size:
                    yield _join(held)
                    held, count = [], 0
            del image
        if count:
            yield _join(held)

    def tiles(
        self, jobs: Sequence[Job], radiometry_of: RadiometryOf, size: int, stride: int, around: int | None = None
    ) -> Iterator[StoredTile | Failure]:
        """What `read_tiles` gives, read ahead as this device needs it."""
        gpu = self.device.type == "cuda"
        readers = READERS if gpu else 1
        return ahead(read_tiles(jobs, radiometry_of, size, stride, self.min_valid, gpu, around, readers), AHEAD)

    @torch.inference_mode()
    def _normalised(self, tile: StoredTile) -> Tensor:
        """``[1, C, H, W]``."""
        stored = tile.pixels.to(self.device, non_blocking=True)
        return resize(tile.radiometry.normalise(stored)[None], *tile.level)

    @torch.inference_mode()
    def _projected(self, tile: StoredTile) -> Tensor:
        """``[1, 3, H, W]`` in the embedder's precision, channels last."""
        assert isinstance(self.embedder, DeployedEmbedder)
        return self.embedder.project(tile.pixels.to(self.device, non_blocking=True), tile.radiometry, tile.level)


def cut(image: Tensor, corners: npt.NDArray[np.int64], size: int) -> Tensor:
    """Copies windows out of an image.

    Args:
        image: ``[1, C, H, W]``.
        corners: ``[n, 2]`` row and column of each window's first pixel.
        size: pixels a side.

    Returns:
        ``[n, C, size, size]`` in the image's memory format.
    """
    if image.device.type == "cpu":
        return torch.cat([image[:, :, y : y + size, x : x + size] for y, x in corners.tolist()])
    # One kernel for all: a GPU would wait for Python to slice.
    row, column = torch.from_numpy(corners).to(image.device, non_blocking=True).T
    views = image[0].permute(1, 2, 0).unfold(0, size, 1).unfold(1, size, 1).permute(0, 1, 3, 4, 2)
    return views[row, column].permute(0, 3, 1, 2)


def _join(parts: Sequence[_Cut]) -> _Cut:
    if len(parts) == 1:
        return parts[0]
    return _Cut(
        np.concatenate([p.jobs for p in parts]),
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.valid for p in parts]),
        torch.cat([p.chips for p in parts]),
    )
