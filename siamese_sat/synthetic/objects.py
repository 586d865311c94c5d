"""The classes that are searched for: how each is drawn, with its variety."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from siamese_sat.synthetic.draw import (
    ASPHALT,
    CLAY,
    CONCRETE,
    DARK,
    GRASS,
    GREY,
    PANEL,
    POOL,
    SOIL,
    TREE,
    WHITE,
    Canvas,
    Colour,
    Sprite,
    tint,
)

Sun = tuple[float, float]
Painter = Callable[[np.random.Generator, float, Sun], Sprite]


def draw_object(name: str, rng: np.random.Generator, sun: Sun) -> Sprite:
    """Draws one object of a class, at a random size, heading and variety.

    Args:
        name: one of ``CLASSES``.
        rng: where the variety comes from.
        sun: unit vector (x, y) in which shadows fall.
    """
    painter, shortest, longest = _PAINTERS[name]
    return painter(rng, float(rng.uniform(shortest, longest)), sun)


def _board(rng: np.random.Generator, length: float, width: float, margin: float) -> Canvas:
    return Canvas(length, width, float(rng.uniform(0, 2 * np.pi)), margin, rng.uniform(-0.5, 0.5, 2).tolist())


def _pick(rng: np.random.Generator, *colours: Colour) -> Colour:
    return tint(rng, colours[int(rng.integers(len(colours)))])


def _aircraft(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    span = rng.uniform(0.84, 1.0)
    c = _board(rng, size, size * span, 14)
    reach = rng.uniform(6, 12)
    if rng.random() < 0.75:
        c.lay(c.box(0, 0, size + 2 * reach, size * span + 2 * reach, 2), _pick(rng, CONCRETE, CONCRETE, ASPHALT))
        c.lay(c.box(0, 0, size + 2 * reach, 1.0), (2300, 2500, 2600, 2600), 0.5)
    skin, metal = tint(rng, WHITE, 0.12), tint(rng, GREY, 0.2)
    livery = _pick(rng, (1900, 900, 600, 1500), (500, 600, 1900, 2100), GREY, WHITE, (700, 1300, 700, 1500))
    root, sweep, tip = 0.13, rng.uniform(0.16, 0.27), span / 2
    for side in (-1, 1):
        engines = (0.17, 0.30) if span > 0.94 else (0.18,)
        for at in engines:
            v = side * at * size
            c.fill(c.spindle((root - 0.22 * at - 0.12) * size, (root - 0.4 * at) * size, v, 1.2, 1.5), metal)
        le, te = (root - sweep) * size, (root - sweep - 0.075) * size
        wing = [(root * size, 0), (le, side * tip * size), (te, side * tip * size), (-0.12 * size, 0)]
        c.fill(c.convex(wing), tint(rng, (2600, 2700, 2750, 2750), 0.05))
        tail = [(-0.34, 0.0), (-0.44, side * 0.18), (-0.49, side * 0.18), (-0.46, 0.0)]
        c.fill(c.convex([(u * size, v * size) for u, v in tail]), skin)
    c.fill(c.spindle(-0.47 * size, 0.2 * size, 0, 0.022 * size, 0.055 * size), skin)
    c.fill(c.spindle(0.1 * size, 0.45 * size, 0, 0.055 * size, 0.04 * size), skin)
    c.fill(c.spindle(-0.49 * size, -0.33 * size, 0, 0.014 * size, 0.012 * size), livery)
    c.fill(c.box(0.44 * size, 0, 0.03 * size, 0.05 * size), DARK)
    return c.sprite(rng, height=rng.uniform(2, 4), sun=sun)


def _storage_tank(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    c = _board(rng, size, size, 12)
    reach = rng.uniform(4, 9)
    c.lay(c.box(0, 0, size + 2 * reach, size + 2 * reach, 3), _pick(rng, SOIL, CONCRETE, GREY))
    wall = tint(rng, WHITE, 0.1)
    c.fill(c.disc(0, 0, size / 2), wall)
    if rng.random() < 0.5:  # a floating roof, sunk in the shell, half of it in the shell's shade
        turn = np.arctan2(sun[1], sun[0]) - c.angle
        depth = rng.uniform(0.05, 0.13) * size
        c.fill(c.disc(0, 0, 0.44 * size), DARK)
        lit = c.disc(float(np.cos(turn) * depth), float(np.sin(turn) * depth), 0.44 * size)
        c.fill(lit & c.disc(0, 0, 0.44 * size), tint(rng, (1900, 1950, 2000, 2050), 0.15))
    else:  # a cone roof: a darker rim, a vent in the middle, a stair along the wall
        c.fill(c.disc(0, 0, 0.45 * size), tint(rng, (1900, 1950, 2000, 2000), 0.1))
        c.fill(c.disc(0, 0, 0.40 * size), wall)
        c.fill(c.disc(0, 0, 0.07 * size), GREY)
    c.fill(c.box(0.42 * size, 0, 0.1 * size, 0.22 * size), GREY)
    return c.sprite(rng, height=0.3 * size, sun=sun, dome=0.14)


def _ship(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    beam = size * rng.uniform(0.16, 0.21)
    c = _board(rng, size, beam, 16)
    foam: Colour = (1500, 1500, 1350, 900)
    if rng.random() < 0.6:
        c.lay(c.convex([(-size / 2, 0), (-0.9 * size, 0.9 * beam), (-0.9 * size, -0.9 * beam)]), foam, 0.25)
        c.lay(c.spindle(-0.8 * size, -size / 2, 0, 0.5, 0.3 * beam), foam, 0.6)
    hull = _pick(rng, (500, 550, 1150, 1300), DARK, (1000, 700, 550, 700), GREY)
    deck = _pick(rng, (650, 800, 1500, 1700), GREY, (700, 1050, 800, 1100), SOIL)
    for scale, paint in ((1.0, hull), (0.8, deck)):
        half = scale * beam / 2
        stern, bow = -size / 2 + (1 - scale) * beam, size / 2 - (1 - scale) * beam
        c.fill(c.box((stern + bow - 0.9 * beam) / 2, 0, bow - stern - 0.9 * beam, 2 * half, 0.2 * half), paint)
        shoulder = bow - 1.1 * beam
        c.fill(c.convex([(shoulder, -half), (shoulder + 0.7 * beam, -half * 0.6), (bow, 0),
                         (shoulder + 0.7 * beam, half * 0.6), (shoulder, half)]), paint)  # fmt: skip
    cargo = rng.random() < 0.6
    for u in np.arange(-0.24, 0.3, 0.115) * size:
        if cargo:
            c.fill(c.box(u, 0, 0.09 * size, 0.68 * beam), _pick(rng, CLAY, (1700, 1000, 700, 1100), GREY, WHITE))
        else:
            c.fill(c.box(u, 0, 0.07 * size, 0.4 * beam), tint(rng, DARK, 0.3))
    c.fill(c.box(-0.37 * size, 0, 0.11 * size, 0.85 * beam), tint(rng, WHITE, 0.1))
    c.fill(c.box(-0.43 * size, 0, 0.04 * size, 0.3 * beam), DARK)
    return c.sprite(rng, height=rng.uniform(2, 4), sun=sun)


def _swimming_pool(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    width = size * rng.uniform(0.5, 0.68)
    c = _board(rng, size, width, 9)
    reach = rng.uniform(3, 7)
    c.lay(c.box(0, 0, size + 2 * reach, width + 2 * reach, 1), _pick(rng, GRASS, CONCRETE, SOIL))
    rim, water, corner = tint(rng, (2500, 2600, 2650, 2600), 0.1), tint(rng, POOL, 0.15), width * 0.25
    if rng.random() < 0.3:  # a kidney
        a, b = 0.5 * width, 0.42 * width
        for grow, paint in ((0.0, rim), (-1.4, water)):
            c.fill(c.disc(a - size / 2, 0, a + grow), paint)
            c.fill(c.disc(size / 2 - b, 0, b + grow), paint)
            c.fill(c.box(0, 0.1 * width, size - a - b, 0.6 * width + 2 * grow), paint)
    else:
        c.fill(c.box(0, 0, size, width, corner), rim)
        c.fill(c.box(0, 0, size - 3, width - 3, corner * 0.8), water)
    c.fill(c.box(0.28 * size, 0, 0.2 * size, width * 0.5), tint(rng, (2900, 2800, 1500, 500), 0.1))
    return c.sprite(rng, height=0, sun=sun)


def _stadium(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    width = size * rng.uniform(0.56, 0.64)
    c = _board(rng, size, width, 7)
    c.lay(c.box(0, 0, size + 8, width + 8, width * 0.3), _pick(rng, GRASS, CONCRETE))
    track = _pick(rng, CLAY, (800, 950, 1700, 2000), (1500, 1150, 850, 1300))
    lane = width * 0.14
    c.fill(c.box(0, 0, size, width, width * 0.499), track)
    for inset in (0.45, 1.0):
        c.fill(c.box(0, 0, size - 2 * lane * inset, width - 2 * lane * inset, (width - 2 * lane * inset) * 0.499),
               (1700, 1800, 2500, 2700))  # fmt: skip
        inner = lane * inset + 0.8
        c.fill(c.box(0, 0, size - 2 * inner, width - 2 * inner, (width - 2 * inner) * 0.499), track)
    field_l, field_w = size - 2 * lane, width - 2 * lane
    infield = c.box(0, 0, field_l, field_w, field_w * 0.499)
    lawn = tint(rng, (480, 1000, 600, 3800), 0.1)
    c.fill(infield, lawn)
    mown = np.floor(c.u / (size * 0.07)) % 2 == 0
    c.fill(infield & mown & c.box(0, 0, field_l * 0.7, field_w * 0.86), tint(rng, (560, 1150, 720, 4100), 0.05))
    c.fill(c.box(0, 0, 0.8, field_w * 0.86), WHITE)
    c.fill(c.disc(0, 0, 0.13 * field_w) & ~c.disc(0, 0, 0.13 * field_w - 0.8), WHITE)
    return c.sprite(rng, height=0, sun=sun)


def _solar_farm(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    width = size * rng.uniform(0.6, 0.85)
    c = _board(rng, size, width, 6)
    c.lay(c.box(0, 0, size + 6, width + 6), _pick(rng, SOIL, GRASS))
    whole = c.box(0, 0, size, width)
    c.fill(whole, _pick(rng, SOIL, (900, 1250, 1300, 2600), CONCRETE))
    pitch = rng.uniform(4.5, 6)
    rows = (c.v + width / 2) % pitch < pitch * rng.uniform(0.6, 0.72)
    lanes = np.abs((c.u + rng.uniform(0, 4)) % rng.uniform(17, 26)) > 2
    c.fill(whole & rows & lanes, tint(rng, PANEL, 0.15))
    c.fill(c.box(rng.choice([-0.3, 0.3]) * size, 0, 4, 5), tint(rng, WHITE, 0.1))
    return c.sprite(rng, height=1, sun=sun)


def _roundabout(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    c = _board(rng, size, size, 14)
    road, kerb = tint(rng, ASPHALT, 0.12), tint(rng, (1900, 2000, 2050, 2200), 0.08)
    for arm in range(int(rng.integers(3, 5))):
        turn = arm * np.pi / 2 + rng.uniform(-0.15, 0.15)
        along = c.u * np.cos(turn) + c.v * np.sin(turn)
        across = np.abs(c.v * np.cos(turn) - c.u * np.sin(turn))
        c.lay((along > 0) & (along < size / 2 + 13) & (across < 0.13 * size), road)
        c.lay((along > 0) & (along < size / 2 + 8) & (across < 0.9), kerb)
    c.fill(c.disc(0, 0, size / 2), kerb)
    c.fill(c.disc(0, 0, size / 2 - 1), road)
    isle = rng.uniform(0.24, 0.3) * size
    c.fill(c.disc(0, 0, isle), kerb)
    c.fill(c.disc(0, 0, isle - 1.3), tint(rng, GRASS, 0.15))
    if rng.random() < 0.6:
        c.fill(c.disc(0, 0, isle * 0.4), tint(rng, TREE, 0.2))
    return c.sprite(rng, height=0, sun=sun)


def _tennis_court(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    width = size * rng.uniform(0.52, 0.58)
    c = _board(rng, size, width, 5)
    c.lay(c.box(0, 0, size + 4, width + 4), _pick(rng, GRASS, CONCRETE))
    around, court = (
        ((650, 1150, 750, 1500), CLAY),
        (CLAY, (650, 1150, 750, 1500)),
        ((650, 1150, 750, 1500), (1900, 1200, 800, 1300)),
        ((1500, 950, 750, 1200), (650, 1200, 800, 1600)),
    )[int(rng.integers(4))]
    c.fill(c.box(0, 0, size, width), tint(rng, around))
    long, wide = 0.72 * size, 0.62 * width
    c.fill(c.box(0, 0, long + 1.2, wide + 1.2), WHITE)
    c.fill(c.box(0, 0, long - 1.2, wide - 1.2), tint(rng, court))
    for v in (-0.38, 0.38):
        c.fill(c.box(0, v * wide, long, 0.8), WHITE)
    for u in (-0.26, 0.26):
        c.fill(c.box(u * long, 0, 0.9, 0.76 * wide), WHITE)
    c.fill(c.box(0, 0, 0.54 * long, 0.8), WHITE)
    c.fill(c.box(0, 0, 1.1, width * 0.8), DARK)
    return c.sprite(rng, height=1, sun=sun)


def _baseball_diamond(rng: np.random.Generator, size: float, sun: Sun) -> Sprite:
    reach = size / np.sqrt(2)
    c = _board(rng, reach, size, 6)
    home = -reach / 2
    outward = c.u - home
    fan = (np.abs(c.v) <= outward) & c.disc(home, 0, reach)
    if rng.random() < 0.5:
        c.lay(c.disc(0, 0, 0.55 * size), tint(rng, GRASS, 0.1))
    dirt = tint(rng, (900, 1250, 1850, 2400), 0.12)
    c.fill(fan, dirt)
    c.fill(fan & (np.abs(c.v) <= outward - 1.5) & c.disc(home, 0, reach - 2.5), tint(rng, (480, 950, 620, 3700), 0.1))
    c.fill(fan & c.disc(home, 0, reach * rng.uniform(0.5, 0.58)), dirt)
    side = reach * 0.34
    c.fill(np.abs(outward - side * 0.85) + np.abs(c.v) < side * 0.68, tint(rng, (500, 1000, 640, 3800), 0.1))
    c.fill(c.disc(home + side * 0.85, 0, 1.6), dirt)
    return c.sprite(rng, height=0, sun=sun)


# How each is drawn, and its shortest and longest side in pixels.
_PAINTERS: dict[str, tuple[Painter, float, float]] = {
    "aircraft": (_aircraft, 36, 54),
    "storage tank": (_storage_tank, 20, 30),
    "ship": (_ship, 48, 70),
    "swimming pool": (_swimming_pool, 16, 24),
    "stadium": (_stadium, 52, 70),
    "solar farm": (_solar_farm, 44, 64),
    "roundabout": (_roundabout, 34, 48),
    "tennis court": (_tennis_court, 26, 36),
    "baseball diamond": (_baseball_diamond, 38, 54),
}

CLASSES: tuple[str, ...] = tuple(_PAINTERS)
ON_WATER = frozenset({"ship"})
