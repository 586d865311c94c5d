"""What the searched scenes look like at random places: the ordinary, from which things must stand out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.model.backbone import STRIDES
from siamese_sat.progress import progress
from siamese_sat.search.dense import stages
from siamese_sat.search.engine import Engine
from siamese_sat.search.level import UNIT, Span, read_level, valid_share
from siamese_sat.search.method import RadiometryOf

# Cells along the side of a sampled place.
SIDE = 24
# What a cell of a residual network sees further away than so many of its stage's strides hardly counts, though its
# receptive field is larger (Luo et al. 2016): statistics and exemplars need no more round them.
SEEN = 4


@dataclass(frozen=True)
class Sample:
    """A random place.

    Attributes:
        features: ``[C, h, w]``.
        deep: ``[C, h', w']`` of the deep stage, whose first cell is centred where that of ``features`` is; or None.
        good: ``[h, w]`` which cells of ``features`` lie on valid pixels.
        step: of its level.
    """

    features: Tensor
    deep: Tensor | None
    good: Tensor
    step: int

    @property
    def later(self) -> Callable[[], Tensor] | None:
        """What gives the deep stage's features, as a tile has it."""
        deep = self.deep
        return None if deep is None else lambda: deep


def sample_background(
    engine: Engine,
    scenes: Sequence[Scene],
    radiometry_of: RadiometryOf,
    steps: Sequence[int],
    stage: str,
    count: int,
    seed: int = 0,
    deep: str | None = None,
) -> Iterator[Sample]:
    """Places drawn evenly over the scenes' area, the levels taken in turn; those without a valid cell are left out.

    Args:
        engine: runs the network.
        scenes: each is opened once at most.
        radiometry_of: normalises a scene.
        steps: of the levels.
        stage: of the backbone.
        count: places to draw, fewer where the scenes are small.
        seed: the same seed draws the same places.
        deep: a later stage whose features are wanted too.
    """
    rng = np.random.default_rng(seed)
    stride = STRIDES[stage]
    phase = STRIDES[deep] // stride if deep else 1
    around = math.ceil(min(SEEN * stride, engine.embedder.backbone.reach(stage)) / stride / phase) * phase
    areas = np.array([s.megapixels for s in scenes])
    # No more than would cover the scenes once at their finest level.
    count = min(count, max(len(steps), math.ceil(areas.sum() * 1e6 * (UNIT / min(steps)) ** 2 / (SIDE * stride) ** 2)))
    drawn = np.sort(rng.choice(len(scenes), count, p=areas / areas.sum()))
    level = rng.permutation(np.arange(count) % len(steps))
    with progress() as bar:
        task = bar.add_task("Learning the background", total=count, unit="places")
        for number in np.unique(drawn):
            scene = scenes[number]
            radiometry = radiometry_of(scene)
            with SceneReader(scene) as reader:
                for step in (steps[i] for i in level[drawn == number]):
                    column, row = (_span(n, step, stride, around, phase, rng) for n in _size(scene))
                    pixels, valid = read_level(reader, radiometry, step, column, row, engine.device)
                    found, deeper = stages(engine, pixels, stage, deep)
                    inner = found[:, around:-around, around:-around]
                    if deeper is not None:
                        deeper = deeper[:, around // phase :, around // phase :]
                        deeper = deeper[:, : math.ceil(inner.shape[1] / phase), : math.ceil(inner.shape[2] / phase)]
                    share = valid_share(valid, stride)[around:-around, around:-around]
                    bar.advance(task)
                    good = (share[: inner.shape[1], : inner.shape[2]] >= engine.min_valid).to(inner.device)
                    if good.any():
                        yield Sample(inner, deeper, good, step)


def good_deep(sample: Sample, phase: int) -> Tensor:
    """Deep features ``[C, n, 1]`` of a sample where a cell is valid.

    Args:
        sample: with a deep stage.
        phase: strides of the first stage in one of the deep one.
    """
    assert sample.deep is not None
    good = F.max_pool2d(sample.good[None, None].float(), phase, ceil_mode=True)[0, 0] > 0
    return sample.deep[:, good][:, :, None]


def _size(scene: Scene) -> tuple[int, int]:
    x0, y0, x1, y1 = scene.aoi
    return x1 - x0, y1 - y0


def _span(length: int, step: int, stride: int, around: int, phase: int, rng: np.random.Generator) -> Span:
    level, side = math.ceil(length * UNIT / step), SIDE * stride
    start = int(rng.integers(0, max(1, level - side))) // (stride * phase) * stride * phase
    # The scene's first cell lies half beyond it, and is no ordinary place; nor is it a valid one in a corner.
    start = max(start, stride * phase if level >= 2 * stride * phase else 0)
    stop = max(start + stride, min(start + side, level // stride * stride))
    return Span(0, 0, 0, start - around * stride, stop + around * stride)
