"""Windows and exemplars to vectors, in the two ways that an index can be made.

Both see the scene through square windows on one grid, at several sizes, since nobody knows yet what will be asked. An
exemplar is seen as the window would see it that it fills as things fill theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from siamese_sat.data.augment import VIEWS, dihedral
from siamese_sat.data.chip import ChipSpec, cut_chip
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.part import Part

# Windows lie on a grid: what they show stands off their middle by up to a quarter of their side.
SHIFTS = ((0.0, 0.0), (-0.125, -0.125), (-0.125, 0.125), (0.125, -0.125), (0.125, 0.125))


@dataclass(frozen=True)
class Encoded:
    """Windows of one scene and size.

    Attributes:
        boxes: ``[n, 4]`` scene pixels.
        valid: ``[n]`` valid part of each, 0..1.
        vectors: ``[n, D]`` of unit length.
        scale: side in scene pixels.
        cells: ``[n, bytes]`` of the windows' middles, bit by bit; None where only vectors are made.
    """

    boxes: npt.NDArray[np.float64]
    valid: npt.NDArray[np.float64]
    vectors: npt.NDArray[np.float32]
    scale: int
    cells: npt.NDArray[np.uint8] | None = None


class Encoder(Protocol):
    """What an index needs of a way to make vectors."""

    @property
    def windows(self) -> Sequence[int]:
        """Sides in scene pixels."""

    def scene(self, scene: Scene, radiometry: Radiometry, part: Part = (0, 1)) -> Iterator[Encoded]:
        """All windows of a scene, size by size; or those in a part of its tiles, seen with all that lies round them.

        Of every size, the windows of all parts in their order are the scene's.

        Raises:
            InputError: the scene cannot be read.
        """

    def exemplar(self, exemplar: Exemplar, radiometry: Radiometry, side: float) -> npt.NDArray[np.float32]:
        """Vectors ``[views, D]`` of an exemplar, as windows of this side in its own scene show it from all sides.

        Raises:
            InputError: it cannot be read, or holds no valid pixel.
        """


@dataclass(frozen=True)
class EmbeddingEncoder:
    """The head's embeddings of windows, one by one.

    Attributes:
        engine: runs the embedder.
        windows: sides in scene pixels.
        size: pixels a side that a window is resized to.
        stride: of these pixels, between windows.
    """

    engine: Engine
    windows: Sequence[int]
    size: int
    stride: int

    def scene(self, scene: Scene, radiometry: Radiometry, part: Part = (0, 1)) -> Iterator[Encoded]:
        """See `Encoder`."""
        for side in self.windows:
            for batch in self.engine.windows(scene, radiometry, (side, side), self.size, self.stride, part):
                yield Encoded(batch.boxes, batch.valid, self.engine.embed_filled(batch.chips).cpu().numpy(), side)

    def exemplar(self, exemplar: Exemplar, radiometry: Radiometry, side: float) -> npt.NDArray[np.float32]:
        """See `Encoder`."""
        spec = ChipSpec(self.size, 0.0, "square")
        with SceneReader(exemplar.scene) as reader:
            cut = [cut_chip(reader, box, spec, radiometry) for box in shifted(exemplar, side)]
        need_valid(exemplar, max(valid for _, valid in cut))
        chips = torch.stack([radiometry.normalise(chip) for chip, _ in cut])
        views = torch.cat([dihedral(chips, view) for view in range(VIEWS)])
        return self.engine.embed(views.to(self.engine.device)).cpu().numpy()


def shifted(exemplar: Exemplar, side: float) -> list[tuple[float, float, float, float]]:
    """Windows of a side in which the exemplar stands in the middle, and an eighth off it towards each corner."""
    x0, y0, x1, y1 = exemplar.box
    cx, cy, half = (x0 + x1) / 2, (y0 + y1) / 2, side / 2
    return [
        (cx + dx * side - half, cy + dy * side - half, cx + dx * side + half, cy + dy * side + half)
        for dx, dy in SHIFTS
    ]


def need_valid(exemplar: Exemplar, valid: float) -> None:
    """Raises an InputError where nothing of an exemplar's surroundings is valid."""
    if valid == 0:
        raise InputError(
            f"{exemplar.scene.path}: the {exemplar.class_name} exemplar at {exemplar.box} holds no valid pixel."
        )
