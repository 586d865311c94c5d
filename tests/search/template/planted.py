"""Scenes of noise with things planted in them, and a search for these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from siamese_sat.data.scene import PixelBox, Scene
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.detect import Candidates, suppress
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.template import TemplateSearch
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY

Image = npt.NDArray[np.float64]
# Width, height, and its parts: left, top, right, bottom as shares of these, and the four bands' values.
Shape = tuple[int, int, list[tuple[tuple[float, float, float, float], tuple[int, int, int, int]]]]
BRIGHT = (0.0, 0.0, 1.0, 1.0)
BOAT: Shape = (
    40, 28,
    [(BRIGHT, (2600, 2400, 2200, 3000)), ((0, 0, 0.3, 1), (300, 300, 300, 500)),
     ((0.5, 0.55, 0.85, 0.9), (400, 900, 2500, 800))],
)  # fmt: skip
POOL: Shape = (
    36, 36,
    [(BRIGHT, (700, 1500, 2600, 5000)), ((0.4, 0, 1, 0.35), (2500, 2500, 2500, 500)),
     ((0.1, 0.6, 0.4, 0.9), (100, 100, 100, 6000))],
)  # fmt: skip
TRAIN: Shape = (
    60, 14,
    [(BRIGHT, (2600, 2600, 2400, 3000)), ((0, 0, 0.25, 1), (300, 300, 300, 500)),
     ((0.6, 0, 0.75, 1), (500, 500, 2000, 500))],
)  # fmt: skip


def texture(seed: int, height: int, width: int) -> Image:
    """``[4, height, width]`` of noise as coarse as five pixels."""
    noise = np.random.default_rng(seed).normal(0, 1, (4, height + 4, width + 4))
    smooth = sum(noise[:, i : i + height, j : j + width] for i in range(5) for j in range(5)) / 5
    scale = RADIOMETRY.scale
    mean, std = (np.array(v)[:, None, None] * scale for v in (RADIOMETRY.mean, RADIOMETRY.std))
    return np.asarray(mean + 0.4 * std * smooth)


def draw(pixels: Image, shape: Shape, cx: float, cy: float, scale: float = 1, degrees: float = 0) -> PixelBox:
    """Paints a shape round (cx, cy), turned clockwise, its edges shared between pixels; returns its box."""
    width, height, parts = shape
    rows, columns, fine = *pixels.shape[1:], 3
    dx = ((np.arange(columns * fine) + 0.5) / fine - cx)[None]
    dy = ((np.arange(rows * fine) + 0.5) / fine - cy)[:, None]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u, v = (c * dx + s * dy) / scale / width + 0.5, (c * dy - s * dx) / scale / height + 0.5
    for (left, top, right, bottom), colour in parts:
        inside = (u >= left) & (u < right) & (v >= top) & (v < bottom)
        share = inside.astype(float).reshape(rows, fine, columns, fine).mean(axis=(1, 3))
        pixels[:] = pixels * (1 - share) + np.array(colour)[:, None, None] * share
    half_w, half_h = scale * (width * abs(c) + height * abs(s)) / 2, scale * (width * abs(s) + height * abs(c)) / 2
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def save(path: Path, pixels: Image, **options: Any) -> Scene:  # noqa: ANN401 - whatever writing takes
    return make_scene(path, pixels.clip(1).round().astype("uint16"), **options)


class Searched:
    """One scene with planted things, searched."""

    def __init__(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        scene: Scene,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        self.scene, self.engine = scene, engine
        self.method = TemplateSearch(**{"box_scale": 1.0, "samples": 12, "least": 0.1, "larger_levels": 0, **settings})
        self.method.prepare(model, engine, exemplars, lambda scene: RADIOMETRY, [scene])

    def all(self, threshold: float = 0.0) -> Candidates:
        return Candidates.join(list(self.method.candidates(self.scene, dict.fromkeys(self.method.classes, threshold))))

    def best(self, count: int, threshold: float = 0.0) -> list[tuple[str, PixelBox, float]]:
        found = suppress(self.all(threshold), 0.1)
        rows = zip(found.classes[:count], found.boxes[:count].tolist(), found.scores[:count], strict=True)
        return [(self.method.classes[c], tuple(b), float(s)) for c, b, s in rows]


def error(found: PixelBox, truth: PixelBox) -> tuple[float, float]:
    """Distance of the centres along the worse axis in pixels; worse ratio of the sides."""
    f, t = np.array(found).reshape(2, 2), np.array(truth).reshape(2, 2)
    ratio = np.log((f[1] - f[0]) / (t[1] - t[0]))
    return float(np.abs(f.mean(0) - t.mean(0)).max()), float(np.exp(np.abs(ratio).max()))


def rows(found: Candidates) -> npt.NDArray[np.float64]:
    """Class, box and score."""
    return np.column_stack([found.classes, found.boxes, found.scores])
