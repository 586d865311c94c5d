"""Windows from one pass of the backbone over a tile, in place of one pass for each window.

A 64 px window has 2 x 2 cells of the last stage, 32 px apart, and its vector is what the head makes of their mean. Over
a tile the same cells are computed once, for all windows that share them. They are not quite the same: a window that is
cut out ends in the network's zero padding, and in a tile its surroundings stand there. So vectors differ, the more the
deeper the network; exemplars are therefore embedded with their surroundings too, and `unlike` says how much is left.

What it costs beside one pass: windows 32 px apart (the stride of the stage) nothing; 16 or 8 px apart what `Finer`
says; other strides cannot be had. A tile is computed with one window's side of the scene around it, a tenth of the
arithmetic with windows of 64 pixels, a third with 256. What a cell sees beyond that, or beyond the scene, is not
there: some cells differ a little with the border of the tile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from shapely import box
from torch import Tensor

from siamese_sat.data.radiometry import RadiometryOf
from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.atrous import Finer
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search.engine import Embedded, Engine
from siamese_sat.search.tile import Failure, Job, StoredTile

log = logging.getLogger(__name__)

# Of the last stage, where it is not made finer.
CELL = 32
STRIDES = (8, 16, 32)
# Windows' sides that a tile is computed beyond its own windows.
AROUND = 1
# Part of the vectors' own variance that may differ where dense evaluation passes for the same, and windows that say it.
SAME, ENOUGH = 0.02, 32


def can_slide(engine: Engine, size: int, stride: int) -> bool:
    """Whether windows of ``size`` pixels, ``stride`` apart, can be had from one pass of this engine's backbone."""
    embedder = engine.embedder
    return isinstance(embedder, DeployedEmbedder) and embedder.projects and stride in STRIDES and size % CELL == 0


@dataclass(frozen=True)
class Sliding:
    """An engine's windows, evaluated densely.

    Attributes:
        engine: whose embedder is used; see `can_slide`.
        backbone: with a cell at every stride.
        size: pixels a side of a window.
        stride: pixels between windows.
    """

    engine: Engine
    backbone: Callable[[Tensor], Tensor]
    size: int
    stride: int

    @classmethod
    def of(cls, engine: Engine, size: int, stride: int) -> Sliding:
        """Made ready for one geometry."""
        embedder = engine.embedder
        assert isinstance(embedder, DeployedEmbedder)
        return cls(engine, embedder.runner(("finer", stride), lambda: Finer(embedder.backbone, stride)), size, stride)

    def vectors(
        self, jobs: Sequence[Job], radiometry_of: RadiometryOf, size: int, stride: int
    ) -> Iterator[Embedded | Failure]:
        """As `Engine.vectors`, tile by tile; the last windows of a row or column may reach beyond the scene."""
        assert (size, stride) == (self.size, self.stride)
        for tile in self.engine.tiles(jobs, radiometry_of, size, stride, AROUND):
            if isinstance(tile, Failure):
                yield tile
            else:
                yield Embedded(np.full(len(tile.boxes), tile.job), tile.boxes, tile.valid, self._of_tile(tile))

    @torch.inference_mode()
    def embed(self, chips: Tensor) -> Tensor:
        """Vectors ``[n, D]`` of the middles of normalised chips that show ``AROUND`` windows more on every side.

        At a scene's border a chip shows the band mean where a tile ends: there it differs a little from its window.
        """
        embedder = self._embedder
        projected = embedder.projection(chips.to(embedder.dtype, memory_format=torch.channels_last))
        middle = AROUND * self.size // self.stride
        return self._head(self._pooled(projected)[:, :, middle, middle])

    @torch.inference_mode()
    def _of_tile(self, tile: StoredTile) -> Tensor:
        stored = tile.pixels.to(self.engine.device, non_blocking=True)
        image = self._embedder.project(stored, tile.radiometry, tile.level)
        # Only what the windows that count need: the rest of the tile may be nothing, as is what lies beyond the scene.
        margin = AROUND * self.size
        top, left = np.maximum(tile.corners.min(axis=0) - margin, tile.seen[0])
        bottom, right = np.minimum(tile.corners.max(axis=0) + self.size + margin, tile.seen[1])
        found = self._pooled(image[:, :, top:bottom, left:right])
        row, column = torch.from_numpy((tile.corners - [top, left]) // self.stride).to(self.engine.device).T
        return self._head(found[0].permute(1, 2, 0)[row, column])

    def _pooled(self, image: Tensor) -> Tensor:
        """Means ``[N, channels, h, w]`` in fp32 over the cells of the window that begins at each cell."""
        cells = self.backbone(image).float()
        step, number = CELL // self.stride, self.size // CELL
        height, width = (n - step * (number - 1) for n in cells.shape[2:])
        shifts = [step * i for i in range(number)]
        first, *rest = (cells[:, :, y : y + height, x : x + width] for y in shifts for x in shifts)
        # One by one into the same memory: stacked, they would pass through it several times.
        total = first.clone()
        for one in rest:
            total += one
        return total.div_(number**2)

    def _head(self, pooled: Tensor) -> Tensor:
        return self._embedder.embed_pooled(pooled)

    @property
    def _embedder(self) -> DeployedEmbedder:
        assert isinstance(self.engine.embedder, DeployedEmbedder)
        return self.engine.embedder


def choose(
    dense: bool | str,
    engine: Engine,
    size: int,
    stride: int,
    scenes: Sequence[Scene],
    radiometry_of: RadiometryOf,
    window: tuple[int, int],
) -> Sliding | None:
    """Dense evaluation if it is wanted; None for windows one by one.

    Args:
        dense: True, False, or ``auto``: where windows from the middles of the scenes have hardly other vectors.
        engine: whose windows.
        size: pixels a side of a window.
        stride: pixels between windows.
        scenes: see `unlike`.
        radiometry_of: of these.
        window: width and height in scene pixels, about.

    Raises:
        InputError: another value, or True where it cannot be.
    """
    if dense not in (True, False, "auto"):
        raise InputError(f"search.method.dense={dense!r} is none of auto, true, false.")
    if dense is False:
        return None
    if not can_slide(engine, size, stride):
        if dense == "auto":
            return None
        raise InputError(
            f"search.method.dense=true needs search.stride=8, 16 or 32 and chips of a multiple of 32 pixels; "
            f"stride is {stride}, chips have {size}."
        )
    sliding = Sliding.of(engine, size, stride)
    if dense is True:
        return sliding
    found = unlike(sliding, scenes, radiometry_of, window)
    if found is None:
        return None
    log.info(
        "Windows are evaluated %s: dense vectors differ from theirs by %.1f %% of their variance.",
        "densely" if found <= SAME else "one by one", 100 * found,
    )  # fmt: skip
    return sliding if found <= SAME else None


def unlike(
    sliding: Sliding, scenes: Sequence[Scene], radiometry_of: RadiometryOf, window: tuple[int, int]
) -> float | None:
    """How far dense vectors are from exact ones, as part of the exact ones' own variance.

    Args:
        sliding: to compare with its engine.
        scenes: from whose middles windows are taken; three at most.
        radiometry_of: of these.
        window: width and height in scene pixels.

    Returns:
        0 where they are the same, 1 where they differ as much as windows do from their mean; None where there is too
        little to compare.
    """
    some = scenes[:: max(1, math.ceil(len(scenes) / 3))]
    samples = [_sample(scene, window) for scene in some]
    jobs = [Job(middle, window) for middle, _ in samples]
    # By the statistics of the whole scenes: the middle's own may be others, and would be kept.
    whole = {middle: scene for (middle, _), scene in zip(samples, some, strict=True)}
    exact, dense = (
        _by_place(source, jobs, lambda middle: radiometry_of(whole[middle]), sliding)
        for source in (sliding.engine, sliding)
    )
    inside = [box(*inner) for _, inner in samples]
    common = [place for place in exact if place in dense and inside[int(place[0])].covers(box(*place[1:]))]
    if len(common) < ENOUGH:
        return None
    one, other = (torch.stack([found[place] for place in common]) for found in (exact, dense))
    spread = (one - one.mean(0)).square().sum(1).mean()
    return float((other - one).square().sum(1).mean() / spread.clamp(min=1e-12))


def _sample(scene: Scene, window: tuple[int, int]) -> tuple[Scene, tuple[int, ...]]:
    """The middle of a scene, and what is `undisturbed` of it."""
    x0, y0, x1, y1 = scene.aoi
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    reach = 5 * window[0], 5 * window[1]
    middle = scene.within((x - reach[0], y - reach[1], x + reach[0], y + reach[1]))
    return middle, undisturbed(middle, scene, window)


def undisturbed(part: Scene, scene: Scene, window: tuple[int, int]) -> tuple[int, ...]:
    """The box of a part of a scene whose windows have around them there what they have in the scene."""
    width, height = AROUND * window[0], AROUND * window[1]
    shrunk = zip(part.aoi, scene.aoi, (width, height, -width, -height), strict=True)
    return tuple(edge if edge == border else edge + by for edge, border, by in shrunk)


def _by_place(
    source: Engine | Sliding, jobs: Sequence[Job], radiometry_of: RadiometryOf, sliding: Sliding
) -> dict[tuple[float, ...], Tensor]:
    found: dict[tuple[float, ...], Tensor] = {}
    for got in source.vectors(jobs, radiometry_of, sliding.size, sliding.stride):
        if isinstance(got, Embedded):
            places = zip(got.jobs.tolist(), *got.boxes.T.tolist(), strict=True)
            found.update(zip(places, got.vectors.cpu(), strict=True))
    return found
