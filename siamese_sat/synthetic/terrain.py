"""The land under the objects: fields, woods, a town, roads and a water body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siamese_sat.synthetic.draw import ASPHALT, GRASS, SOIL, TREE, WATER, BoolArray, Colour, FloatArray, tint

IntArray = npt.NDArray[np.int64]

_FIELDS: tuple[Colour, ...] = (
    GRASS,
    (420, 760, 520, 3900),
    (560, 900, 780, 3000),
    (750, 1050, 1150, 2500),
    SOIL,
    (1050, 1400, 1650, 2600),
    (700, 950, 1200, 2000),
)
_YARDS: tuple[Colour, ...] = ((980, 1220, 1290, 2000), (1100, 1310, 1350, 1800), (620, 880, 800, 2700), SOIL)


@dataclass(frozen=True)
class Terrain:
    """Land without anything on it.

    Attributes:
        pixels: ``[4, h, w]`` B, G, R, NIR, reflectance x 10000.
        water: ``[h, w]``, where the water body is.
        road: ``[h, w]``, where roads and streets are.
        town: ``[h, w]``, where the town is.
        angle: radians, the heading of its streets.
    """

    pixels: FloatArray
    water: BoolArray
    road: BoolArray
    town: BoolArray
    angle: float


def make_terrain(rng: np.random.Generator, width: int, height: int, water_share: float) -> Terrain:
    """Makes land of which ``water_share`` (0..1) is one body of water, or nearly one."""
    y, x = np.meshgrid(np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing="ij")
    relief = noise(rng, height, width, 240, 5)
    fine = noise(rng, height, width, 24, 4)
    grain = noise(rng, height, width, 5, 2)
    angle = float(rng.uniform(0, np.pi))
    warp = 14 * relief

    pixels, _ = _parcels(rng, x + warp, y + warp, angle + rng.uniform(0.3, 1.2), (70, 190), _FIELDS)
    pixels *= 1 + 0.08 * fine + 0.05 * grain
    pixels[3] *= 1 + 0.06 * relief

    wood = noise(rng, height, width, 130, 4) > 1.0
    pixels[:, wood] = np.asarray(TREE, np.float32)[:, None] * (1.05 + 0.22 * grain[wood] + 0.12 * fine[wood])

    town_field = noise(rng, height, width, 300, 2)
    town = town_field > np.quantile(town_field, 0.7)
    yards, kerb = _parcels(rng, x[town], y[town], angle, (75, 125), _YARDS)
    pixels[:, town] = yards * (1 + 0.10 * fine[town] + 0.06 * grain[town])
    road = np.zeros((height, width), bool)
    road[town] = kerb < 3.2

    for _ in range(2 + (width + height) // 700):
        turn, bend = rng.uniform(0, np.pi), rng.uniform(10, 40)
        along = x * np.cos(turn) + y * np.sin(turn)
        across = y * np.cos(turn) - x * np.sin(turn)
        middle = across[int(rng.integers(height)), int(rng.integers(width))]
        offset = np.abs(across - middle - bend * np.sin(along / rng.uniform(120, 300)))
        road |= offset < rng.uniform(3, 5.5)
    asphalt = np.asarray(tint(rng, ASPHALT, 0.15), np.float32)[:, None]
    pixels[:, road] = asphalt * (1 + 0.05 * grain[road])

    # A ramp across the scene gathers the water on one side, so that it is one body and not puddles.
    turn = rng.uniform(0, 2 * np.pi)
    ramp = (x * np.cos(turn) + y * np.sin(turn)) / max(width, height)
    level = 3.2 * ramp + 0.45 * relief + 0.03 * fine
    shore = np.quantile(level, water_share)
    water = level < shore
    beach = (level < shore + 0.03 + 0.02 * fine) & ~water
    pixels[:, beach] = np.asarray(SOIL, np.float32)[:, None] * (1.15 + 0.06 * grain[beach])
    depth = np.clip((shore - level[water]) / 0.8, 0, 1)
    shallow, deep = np.asarray((950, 1000, 700, 200)), np.asarray(tint(rng, WATER, 0.15))
    share = np.exp(-9 * depth)[None]
    ripple = 1 + 0.03 * grain[water] + 0.04 * fine[water] + 0.05 * relief[water]
    pixels[:, water] = ((deep[:, None] * (1 - share) + shallow[:, None] * share) * ripple).astype(np.float32)
    return Terrain(pixels, water, (road | beach) & ~water, town & ~water, angle)


def noise(rng: np.random.Generator, height: int, width: int, scale: float, octaves: int) -> FloatArray:
    """Smooth noise ``[height, width]`` of mean about 0 and deviation about 1.

    Value noise on a lattice (K. Perlin, An Image Synthesizer, 1985), each octave half as wide and half as strong.

    Args:
        rng: the source.
        height: rows.
        width: columns.
        scale: pixels between the lattice points of the widest octave.
        octaves: how many are added.
    """
    total = np.zeros((height, width), np.float32)
    power = 0.0
    for octave in range(octaves):
        step, weight = max(scale / 2**octave, 2.0), 0.5**octave
        (row, down), (column, right) = _lattice(rng, height, step), _lattice(rng, width, step)
        values = rng.standard_normal((row[-1] + 2, column[-1] + 2), np.float32) * np.float32(weight)
        values = values[row] + down[:, None] * (values[row + 1] - values[row])
        left = values.take(column, 1)
        left += right * (values.take(column + 1, 1) - left)
        total += left
        power += weight**2 * 0.55  # interpolation between lattice points takes about half the variance
    return total / np.float32(np.sqrt(power))


def _lattice(rng: np.random.Generator, size: int, step: float) -> tuple[IntArray, FloatArray]:
    """For each pixel the lattice point before it and how far it is on to the next, eased, 0..1."""
    at = np.arange(size) / step + rng.uniform(0, 1)
    cell = at.astype(np.int64)
    t = (at - cell).astype(np.float32)
    return cell, t * t * (3 - 2 * t)


def _parcels(
    rng: np.random.Generator,
    x: FloatArray,
    y: FloatArray,
    angle: float,
    sides: tuple[float, float],
    colours: tuple[Colour, ...],
) -> tuple[FloatArray, FloatArray]:
    """Rectangular plots in strips: pixels ``[4, ...]`` at places x, y ``[...]``, and distances to a border."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    low, high = min(u.min(), v.min()) - 400, max(u.max(), v.max()) + 400
    count = int((high - low) / sides[0]) + 2
    cuts_u = (low + np.cumsum(rng.uniform(*sides, count))).astype(np.float32)
    cuts_v = (low + np.cumsum(rng.uniform(*sides, count))).astype(np.float32)
    strip = _cell(cuts_u, u)
    # Each strip's plots are shifted, or the borders would run through the whole scene.
    v = v + rng.uniform(0, 90, count).astype(np.float32)[strip]
    plot = _cell(cuts_v, v)
    edge = np.minimum(np.minimum(u - cuts_u[strip - 1], cuts_u[strip] - u),
                      np.minimum(v - cuts_v[plot - 1], cuts_v[plot] - v))  # fmt: skip
    palette = np.asarray([tint(rng, colours[k], 0.18) for k in rng.integers(len(colours), size=997)], np.float32)
    key = (strip * 61 + plot) % 997
    furrow = np.where(rng.random(997) < 0.5, rng.uniform(0.01, 0.06, 997), 0).astype(np.float32)[key]
    pitch = rng.uniform(0.6, 1.4, 997).astype(np.float32)[key]
    tone = 1 + furrow * np.sin(np.where(key % 2, u, v) * pitch)
    tone *= np.where((edge < 1.6) & (key % 3 > 0), np.float32(0.72), np.float32(1))
    pixels = np.stack([band[key] * tone for band in palette.T])
    return pixels.astype(np.float32, copy=False), edge


def _cell(cuts: FloatArray, values: FloatArray) -> IntArray:
    return np.clip(np.searchsorted(cuts, values), 1, len(cuts) - 1)
