"""A small rotated drawing board with antialiased edges, and the sprite that comes off it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Colour = tuple[float, float, float, float]

SUPERSAMPLE = 4

# Surface reflectance x 10000 in B, G, R, NIR: orders of magnitude as in Sentinel-2 and PlanetScope scenes.
GRASS: Colour = (480, 800, 620, 3400)
TREE: Colour = (330, 570, 390, 3000)
SOIL: Colour = (970, 1330, 1600, 2350)
CONCRETE: Colour = (1600, 1820, 1880, 2150)
ASPHALT: Colour = (790, 940, 930, 1080)
WHITE: Colour = (3300, 3400, 3450, 3400)
GREY: Colour = (1500, 1550, 1600, 1750)
DARK: Colour = (420, 430, 440, 520)
WATER: Colour = (620, 600, 380, 130)
POOL: Colour = (2500, 2250, 1050, 380)
BLUE_ROOF: Colour = (2000, 1450, 950, 1500)
RED_ROOF: Colour = (750, 950, 1750, 2100)
PANEL: Colour = (720, 560, 480, 620)
CLAY: Colour = (750, 950, 1900, 2300)


@dataclass(frozen=True)
class Sprite:
    """Something ready to be laid into a scene, ``h x w`` pixels.

    Attributes:
        ground: ``[5, h, w]``, what lies round the thing (apron, wake, lawn): B, G, R, NIR times opacity, opacity.
        solid: ``[5, h, w]``, the thing itself, likewise.
        shadow: ``[h, w]`` in 0..1, what the thing shades.
        box: x_min, y_min, x_max, y_max of the pixels that the thing covers by half or more, half-open.
    """

    ground: FloatArray
    solid: FloatArray
    shadow: FloatArray
    box: tuple[int, int, int, int]


def tint(rng: np.random.Generator, colour: Colour, spread: float = 0.1) -> Colour:
    """The colour, brighter or darker by about ``spread``, each band by a third of that besides."""
    gain = 1 + spread * rng.uniform(-1, 1) + spread / 3 * rng.uniform(-1, 1, 4)
    b, g, r, n = (float(c * k) for c, k in zip(colour, gain, strict=True))
    return b, g, r, n


class Canvas:
    """A board whose axes ``u`` (along) and ``v`` (across) are turned by an angle; the origin is its middle.

    Shapes are boolean masks on a grid ``SUPERSAMPLE`` times finer than the scene; later fills cover earlier ones.

    Args:
        length: extent of the thing along ``u``, pixels.
        width: extent along ``v``, pixels.
        angle: radians from the x axis to ``u``.
        margin: pixels left free all round, for ground and shadow.
        offset: where the middle falls inside its pixel, x and y in -0.5..0.5.
    """

    def __init__(
        self, length: float, width: float, angle: float, margin: float, offset: Sequence[float] = (0.0, 0.0)
    ) -> None:
        self.length, self.width, self.angle = length, width, angle
        cos, sin = math.cos(angle), math.sin(angle)
        self.w = 2 * math.ceil((length * abs(cos) + width * abs(sin)) / 2 + margin) + 1
        self.h = 2 * math.ceil((length * abs(sin) + width * abs(cos)) / 2 + margin) + 1
        x = (np.arange(self.w * SUPERSAMPLE, dtype=np.float32) + 0.5) / SUPERSAMPLE - self.w / 2 - offset[0]
        y = (np.arange(self.h * SUPERSAMPLE, dtype=np.float32) + 0.5) / SUPERSAMPLE - self.h / 2 - offset[1]
        self.u: FloatArray = np.asarray(x[None, :] * cos + y[:, None] * sin, np.float32)
        self.v: FloatArray = np.asarray(y[:, None] * cos - x[None, :] * sin, np.float32)
        self._index = {layer: np.zeros(self.u.shape, np.uint8) for layer in ("ground", "solid")}
        self._paint: list[tuple[float, ...]] = [(0.0,) * 5]

    def disc(self, u: float, v: float, radius: float) -> BoolArray:
        """A disc."""
        return np.asarray((self.u - u) ** 2 + (self.v - v) ** 2 <= radius**2)

    def box(self, u: float, v: float, length: float, width: float, corner: float = 0.0) -> BoolArray:
        """A rectangle about (u, v) whose corners are rounded to a radius of ``corner``."""
        du = np.abs(self.u - u) - (length / 2 - corner)
        dv = np.abs(self.v - v) - (width / 2 - corner)
        if corner <= 0:
            return np.asarray((du <= 0) & (dv <= 0))
        return np.asarray(np.maximum(du, 0) ** 2 + np.maximum(dv, 0) ** 2 <= corner**2)

    def spindle(self, u0: float, u1: float, v: float, r0: float, r1: float) -> BoolArray:
        """A body along ``u`` with round ends, of radius ``r0`` at ``u0`` and ``r1`` at ``u1``."""
        t = np.clip((self.u - u0) / (u1 - u0), 0, 1)
        return np.asarray(np.hypot(self.u - (u0 + t * (u1 - u0)), self.v - v) <= r0 + (r1 - r0) * t)

    def convex(self, points: Sequence[tuple[float, float]]) -> BoolArray:
        """A convex polygon; the points may run either way round."""
        edges = list(zip(points, [*points[1:], points[0]], strict=True))
        turn = math.copysign(1, sum(a[0] * b[1] - b[0] * a[1] for a, b in edges))
        inside = np.ones(self.u.shape, bool)
        for (u0, v0), (u1, v1) in edges:
            inside &= turn * ((u1 - u0) * (self.v - v0) - (v1 - v0) * (self.u - u0)) >= 0
        return inside

    def fill(self, mask: BoolArray, colour: Colour) -> None:
        """Paints a part of the thing itself."""
        self._index["solid"][mask] = len(self._paint)
        self._paint.append((*colour, 1.0))

    def lay(self, mask: BoolArray, colour: Colour, opacity: float = 1.0) -> None:
        """Paints a part of what lies round the thing."""
        self._index["ground"][mask] = len(self._paint)
        self._paint.append((*(c * opacity for c in colour), opacity))

    def sprite(
        self,
        rng: np.random.Generator,
        *,
        height: float = 0.0,
        sun: tuple[float, float] = (0.7, 0.7),
        dome: float = 0.0,
    ) -> Sprite:
        """Takes the drawing off the board.

        Args:
            rng: for the grain of the surface.
            height: length of the shadow in pixels.
            sun: unit vector (x, y) in which shadows fall.
            dome: how much brighter the sunlit side is than the middle, 0 for a flat thing.
        """
        table = np.asarray(self._paint, np.float32)
        cell = np.arange(self.h * self.w, dtype=np.int64).reshape(self.h, self.w) * len(table)
        cell = cell.repeat(SUPERSAMPLE, 0).repeat(SUPERSAMPLE, 1)
        layers = {}
        for name, index in self._index.items():
            # How often each colour occurs in each pixel, counted in one pass.
            count = np.bincount((cell + index).ravel(), minlength=self.h * self.w * len(table))
            share = count.reshape(self.h, self.w, len(table)).astype(np.float32) / SUPERSAMPLE**2
            layer: FloatArray = np.ascontiguousarray(np.moveaxis(share @ table, 2, 0))
            layer[:4] *= 1 + 0.03 * rng.standard_normal((self.h, self.w), np.float32)
            layers[name] = layer
        solid = layers["solid"]
        if dome:
            y, x = np.mgrid[: self.h, : self.w].astype(np.float32)
            side = ((x - self.w // 2) * sun[0] + (y - self.h // 2) * sun[1]) * 2 / max(self.length, self.width)
            solid[:4] *= 1 - dome * np.clip(side, -1, 1)
        return Sprite(layers["ground"], solid, _shadow(solid[4], height, sun), _extent(solid[4] >= 0.5))


def _shadow(cover: FloatArray, height: float, sun: tuple[float, float]) -> FloatArray:
    shadow = np.zeros_like(cover)
    h, w = cover.shape
    for step in np.arange(1, height + 1):
        dx, dy = round(step * sun[0]), round(step * sun[1])
        to = np.s_[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)]
        source = np.s_[max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)]
        shadow[to] = np.maximum(shadow[to], cover[source])
    return shadow


def _extent(mask: BoolArray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
