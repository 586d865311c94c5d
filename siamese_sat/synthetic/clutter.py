"""Things that look somewhat like the classes and are none of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from siamese_sat.synthetic.draw import (
    ASPHALT,
    BLUE_ROOF,
    CLAY,
    CONCRETE,
    DARK,
    GRASS,
    GREY,
    RED_ROOF,
    SOIL,
    TREE,
    WATER,
    WHITE,
    Canvas,
    Colour,
    Sprite,
    tint,
)

Sun = tuple[float, float]


def draw_clutter(zone: str, rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    """Draws one unlabelled thing that belongs in a zone.

    Args:
        zone: ``town``, ``country`` or ``water``.
        rng: where the variety comes from.
        sun: unit vector (x, y) in which shadows fall.
        angle: radians; the heading of the streets, which buildings follow.
    """
    painters = _ZONES[zone]
    return painters[int(rng.integers(len(painters)))](rng, sun, angle)


def _pick(rng: np.random.Generator, *colours: Colour) -> Colour:
    return tint(rng, colours[int(rng.integers(len(colours)))], 0.15)


def _any(rng: np.random.Generator) -> float:
    return float(rng.uniform(0, 2 * np.pi))


def _building(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    length, width = rng.uniform(16, 44), rng.uniform(11, 20)
    c = Canvas(length, width, angle + (np.pi / 2 if rng.random() < 0.5 else 0), 9)
    c.lay(c.box(0, 0, length + 7, width + 7), _pick(rng, CONCRETE, GRASS, SOIL, ASPHALT), 0.8)
    roof = _pick(rng, WHITE, GREY, RED_ROOF, RED_ROOF, BLUE_ROOF, CONCRETE, SOIL)
    shade: Colour = (roof[0] * 0.82, roof[1] * 0.82, roof[2] * 0.82, roof[3] * 0.82)
    wing = c.box(length * 0.3, width * 0.3, length * 0.4, width * 0.4) if rng.random() < 0.3 else c.box(0, 0, 0, 0)
    c.fill(c.box(0, 0, length, width) & ~wing, roof)
    if rng.random() < 0.6:
        c.fill(c.box(0, width / 4, length, width / 2) & ~wing, shade)
    else:
        for _ in range(int(rng.integers(1, 5))):
            u, v = rng.uniform(-0.35, 0.35) * length, rng.uniform(-0.3, 0.1) * width
            c.fill(c.box(u, v, 3, 2.5), tint(rng, GREY, 0.3))
    return c.sprite(rng, height=rng.uniform(2, 7), sun=sun)


def _cross(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    size = rng.uniform(28, 46)
    c = Canvas(size, size, angle, 9)
    roof = _pick(rng, WHITE, GREY, CONCRETE)
    c.lay(c.box(0, 0, size + 8, size + 8), _pick(rng, CONCRETE, GRASS), 0.9)
    c.fill(c.box(0, 0, size, size * 0.26), roof)
    c.fill(c.box(rng.uniform(-0.2, 0.2) * size, 0, size * 0.24, size * rng.uniform(0.6, 1)), roof)
    return c.sprite(rng, height=rng.uniform(3, 6), sun=sun)


def _flat_disc(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    size = rng.uniform(14, 34)
    c = Canvas(size, size, _any(rng), 6)
    c.fill(c.disc(0, 0, size / 2), _pick(rng, CONCRETE, SOIL, GREY, WHITE, ASPHALT, GRASS))
    return c.sprite(rng)


def _pond(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    length, width = rng.uniform(16, 50), rng.uniform(12, 26)
    c = Canvas(length, width, _any(rng), 5)
    c.lay(c.box(0, 0, length + 4, width + 4, width / 2), _pick(rng, TREE, SOIL, GRASS))
    c.fill(c.box(0, 0, length, width, width * rng.uniform(0.2, 0.499)), _pick(rng, WATER, (900, 1000, 800, 300)))
    return c.sprite(rng)


def _trees(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    size = rng.uniform(14, 42)
    c = Canvas(size, size * rng.uniform(0.4, 1), _any(rng), 6)
    for _ in range(int(rng.integers(2, 4 + int(size / 3)))):
        u, v = rng.uniform(-0.4, 0.4) * c.length, rng.uniform(-0.4, 0.4) * c.width
        crown = tint(rng, TREE, 0.25)
        radius = rng.uniform(2.5, 4.5)
        c.fill(c.disc(u, v, radius), (crown[0] * 0.75, crown[1] * 0.75, crown[2] * 0.75, crown[3] * 0.75))
        c.fill(c.disc(u - 0.6, v - 0.6, radius * 0.7), crown)
    return c.sprite(rng, height=3, sun=sun)


def _parking(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    length, width = rng.uniform(26, 52), 16.0
    c = Canvas(length, width, angle, 5)
    c.lay(c.box(0, 0, length + 6, width + 6), tint(rng, ASPHALT, 0.15))
    stride = rng.choice([3.4, 5.0])
    for v in (-4.5, 4.5):
        for u in np.arange(-length / 2 + 2, length / 2 - 1, stride):
            if rng.random() < 0.6:
                c.fill(c.box(u, v, stride * 0.6, 5.0), _pick(rng, WHITE, GREY, DARK, CLAY, BLUE_ROOF))
    c.fill(c.box(-length / 2, -width / 2 + 1, 1, 1), GREY)
    return c.sprite(rng, height=1, sun=sun)


def _greenhouse(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    length, width = rng.uniform(30, 60), rng.uniform(20, 42)
    c = Canvas(length, width, _any(rng), 6)
    whole = c.box(0, 0, length, width)
    c.fill(whole, _pick(rng, (2300, 2400, 2350, 2900), GREY))
    c.fill(whole & (c.v % rng.uniform(5, 8) < 2), _pick(rng, GREY, GRASS, CONCRETE))
    return c.sprite(rng, height=2, sun=sun)


def _court_yard(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    length, width = rng.uniform(24, 60), rng.uniform(16, 34)
    c = Canvas(length, width, _any(rng), 4)
    c.fill(c.box(0, 0, length, width, float(rng.uniform(0, 0.49)) * width), _pick(rng, GRASS, CLAY, SOIL, ASPHALT))
    return c.sprite(rng)


def _raft(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    length, width = rng.uniform(8, 46), rng.uniform(4, 9)
    c = Canvas(length, width, _any(rng), 4)
    c.fill(c.box(0, 0, length, width, rng.uniform(0, 1)), _pick(rng, GREY, CONCRETE, SOIL, WHITE))
    return c.sprite(rng, height=2, sun=sun)


def _foam(rng: np.random.Generator, sun: Sun, angle: float) -> Sprite:
    length = rng.uniform(12, 50)
    c = Canvas(length, 6, _any(rng), 4)
    c.lay(c.spindle(-length / 2, length / 2, 0, 0.4, rng.uniform(1, 2.4)), (1500, 1500, 1350, 900), 0.5)
    c.fill(c.spindle(length / 2 - 4, length / 2, 0, 0.8, 1.3), tint(rng, WHITE, 0.2))
    return c.sprite(rng)


_Painter = Callable[[np.random.Generator, Sun, float], Sprite]
_ZONES: dict[str, tuple[_Painter, ...]] = {
    "town": (_building, _building, _building, _building, _cross, _flat_disc, _parking, _trees, _court_yard),
    "country": (_trees, _trees, _trees, _flat_disc, _pond, _greenhouse, _court_yard, _building),
    "water": (_raft, _foam),
}
