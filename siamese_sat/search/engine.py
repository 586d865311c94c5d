"""Scenes in, windows and their embeddings out: the one place where search reads pixels and runs the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import Embedder
from siamese_sat.search import window as grid


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
        self, scene: Scene, radiometry: Radiometry, window: tuple[int, int], size: int, stride: int
    ) -> Iterator[WindowBatch]:
        """Cuts a scene into windows, full batches across tile borders.

        Args:
            scene: read tile by tile.
            radiometry: normalises it.
            window: width and height in scene pixels.
            size: pixels a side that a window is resized to.
            stride: of those pixels, between windows.
        """
        held: list[Tensor] = []
        where: list[npt.NDArray[np.float64]] = []
        count = 0
        for places, pixels, corners in self._tiles(scene, radiometry, window, size, stride):
            where.append(places)
            for y, x in corners:
                held.append(pixels[:, y : y + size, x : x + size])
                count += 1
                if count == self.batch_size:
                    every = np.concatenate(where)
                    yield WindowBatch(every[:count, :4], every[:count, 4], torch.stack(held))
                    where, held, count = [every[count:]], [], 0
            # A view would keep its whole tile in memory until the batch is full.
            held = [chip.clone() for chip in held]
        if count:
            every = np.concatenate(where)
            yield WindowBatch(every[:, :4], every[:, 4], torch.stack(held))

    def _tiles(
        self, scene: Scene, radiometry: Radiometry, window: tuple[int, int], size: int, stride: int
    ) -> Iterator[tuple[npt.NDArray[np.float64], Tensor, list[tuple[int, int]]]]:
        """Boxes and valid parts ``[n, 5]`` of a tile's windows, its pixels, and where in them each window begins."""
        x0, y0, x1, y1 = scene.aoi
        # A scene smaller than a window stands in the middle of the only one.
        left, top = max(0, window[0] - (x1 - x0)) // 2, max(0, window[1] - (y1 - y0)) // 2
        columns = list(grid.axis_tiles(x1 - x0, window[0], size, stride))
        with SceneReader(scene) as reader:
            for row in grid.axis_tiles(y1 - y0, window[1], size, stride):
                for column in columns:
                    raw, valid = reader.read(
                        x0 - left + column.source, y0 - top + row.source, column.source_length, row.source_length
                    )
                    if not valid.any():
                        continue
                    found = grid.boxes(column.places, row.places, window, size, (x0 - left, y0 - top))
                    share = self._valid(valid, row, column, found, scene, size)
                    keep = share >= self.min_valid - 1e-6
                    if not keep.any():
                        continue
                    # The tile travels as it is stored; it becomes float on the device.
                    stored = torch.from_numpy(radiometry.fill(raw, valid)).to(self.device)
                    pixels = resize(radiometry.normalise(stored)[None], row.level_length, column.level_length)[0]
                    corners = [(int(row.offsets[i]), int(column.offsets[j])) for i, j in np.argwhere(keep)]
                    yield np.column_stack([found, share.ravel().clip(0, 1)])[keep.ravel()], pixels, corners

    def _valid(
        self,
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
        total = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1))
        total[1:, 1:] = valid.cumsum(0).cumsum(1)
        for tile in (row, column):
            ends = np.stack([tile.offsets, tile.offsets + size]) * tile.source_length / tile.level_length
            whole = ends.astype(int)
            part, further = (ends - whole)[..., None], np.minimum(whole + 1, tile.source_length)
            at = total[whole] * (1 - part) + total[further] * part
            total = (at[1] - at[0]).T
        x0, y0, x1, y1 = scene.aoi
        inside = np.minimum(boxes[:, 2:], [x1, y1]) - np.maximum(boxes[:, :2], [x0, y0])
        return np.asarray(total / np.maximum(inside.prod(axis=1).reshape(shape), 1e-9))
