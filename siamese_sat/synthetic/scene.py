"""One made-up scene: land, labelled objects, clutter, and what a sensor does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siamese_sat.errors import InputError
from siamese_sat.synthetic.clutter import draw_clutter
from siamese_sat.synthetic.draw import BoolArray, FloatArray, Sprite
from siamese_sat.synthetic.objects import CLASSES, ON_WATER, draw_object
from siamese_sat.synthetic.terrain import make_terrain

GAP = 6  # free pixels kept round every object
REDRAWS = 12  # smaller or otherwise turned variants tried before a class is said not to fit


@dataclass(frozen=True)
class SceneObject:
    """A labelled object; its box is in pixels of the scene, half-open, tight round its silhouette."""

    class_name: str
    x_min: int
    y_min: int
    x_max: int
    y_max: int


def make_scene(
    rng: np.random.Generator, width: int, height: int, classes: Sequence[str], per_class: int, clutter: int
) -> tuple[npt.NDArray[np.uint16], list[SceneObject]]:
    """Makes a labelled scene.

    Land, objects, clutter and sensor noise draw from generators of their own, so that the same seed with other
    objects gives the same land.

    Args:
        rng: the source of everything; the same state gives the same scene.
        width: columns.
        height: rows.
        classes: what to place, of ``CLASSES``; ships lie on water, the rest on land.
        per_class: how many of each.
        clutter: how many unlabelled things besides; those that find no room are left out.

    Returns:
        Pixels ``[4, height, width]`` in the order B, G, R, NIR, reflectance x 10000, and the objects.

    Raises:
        InputError: an unknown class, or a scene too small for what it shall hold.
    """
    unknown = sorted(set(classes) - set(CLASSES))
    if unknown:
        raise InputError(f"No synthetic class is called {', '.join(unknown)}; choose of {', '.join(CLASSES)}.")
    land_rng, object_rng, clutter_rng, sensor_rng = rng.spawn(4)
    ships = per_class * sum(name in ON_WATER for name in classes)
    share = min(0.5, max(0.18, ships * 75**2 * 2.5 / (width * height)))
    terrain = make_terrain(land_rng, width, height, share)
    heading = land_rng.uniform(0, 2 * np.pi)
    sun = (float(np.cos(heading)), float(np.sin(heading)))
    taken = {"land": terrain.water | terrain.road, "water": ~terrain.water}

    open_places = {zone: np.flatnonzero(~mask) for zone, mask in taken.items()}
    placed: list[tuple[Sprite, int, int]] = []
    objects: list[SceneObject] = []
    for name in [name for name in classes for _ in range(per_class)]:
        for _ in range(REDRAWS):
            sprite = draw_object(name, object_rng, sun)
            zone = "water" if name in ON_WATER else "land"
            spot = _find_room(object_rng, taken[zone], open_places[zone], sprite)
            if spot:
                break
        else:
            raise InputError(
                f"A synthetic scene of {width} x {height} px has no room for {per_class} of each of "
                f"{len(set(classes))} classes ({name} did not fit); make it larger or ask for fewer."
            )
        placed.append((sprite, *spot))
        objects.append(SceneObject(name, *_occupy(taken, sprite, *spot)))

    zones = {"town": taken["land"] | ~terrain.town, "country": taken["land"] | terrain.town, "water": taken["water"]}
    open_places = {zone: np.flatnonzero(~mask) for zone, mask in zones.items()}
    for zone in map(str, clutter_rng.choice(list(zones), clutter, p=[0.6, 0.33, 0.07])):
        sprite = draw_clutter(zone, clutter_rng, sun, terrain.angle)
        spot = _find_room(clutter_rng, zones[zone], open_places[zone], sprite, exhaustive=False)
        if spot:
            placed.append((sprite, *spot))
            _occupy(zones, sprite, *spot)

    pixels = terrain.pixels
    # Layer by layer: one object's apron must not cover its neighbour.
    for layer in ("ground", "shadow", "solid"):
        for sprite, x, y in placed:
            _paste(pixels, sprite, x, y, layer)
    return _sense(sensor_rng, pixels), objects


def _find_room(
    rng: np.random.Generator,
    taken: BoolArray,
    places: npt.NDArray[np.int64],
    sprite: Sprite,
    exhaustive: bool = True,
) -> tuple[int, int] | None:
    """Where the sprite's corner may go so that its box, grown by ``GAP``, is free and inside; None if nowhere.

    ``places`` (flat indices) are tried as middles of the box first; if none will do and the search is
    exhaustive, every place is looked at.
    """
    x0, y0, x1, y1 = sprite.box
    w, h = x1 - x0 + 2 * GAP, y1 - y0 + 2 * GAP
    room_y, room_x = taken.shape[0] - h + 1, taken.shape[1] - w + 1
    if room_x <= 0 or room_y <= 0 or not len(places):
        return None
    for place in rng.choice(places, 80).tolist():
        y, x = place // taken.shape[1] - h // 2, place % taken.shape[1] - w // 2
        if 0 <= x < room_x and 0 <= y < room_y and not taken[y : y + h, x : x + w].any():
            return x + GAP - x0, y + GAP - y0
    if not exhaustive:
        return None
    # Summed-area table: how much of each possible box is taken.
    total = np.pad(taken.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
    free = np.flatnonzero(total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w] == 0)
    if not len(free):
        return None
    y, x = divmod(int(rng.choice(free)), room_x)
    return x + GAP - x0, y + GAP - y0


def _occupy(taken: dict[str, BoolArray], sprite: Sprite, x: int, y: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = sprite.box
    box = (x + x0, y + y0, x + x1, y + y1)
    for mask in taken.values():
        mask[box[1] : box[3], box[0] : box[2]] = True
    return box


def _paste(pixels: FloatArray, sprite: Sprite, x: int, y: int, layer: str) -> None:
    """Lays one layer of a sprite into ``pixels [4, h, w]``, its corner at (x, y); what is outside is cut."""
    h, w = sprite.shadow.shape
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = min(h, pixels.shape[1] - y), min(w, pixels.shape[2] - x)
    under = pixels[:, y + top : y + bottom, x + left : x + right]
    if layer == "shadow":
        under *= 1 - np.float32(0.55) * sprite.shadow[top:bottom, left:right]
        return
    paint: FloatArray = getattr(sprite, layer)[:, top:bottom, left:right]
    under *= 1 - paint[4]
    under += paint[:4]


def _sense(rng: np.random.Generator, pixels: FloatArray) -> npt.NDArray[np.uint16]:
    """Optics, atmosphere and detector: a slight blur, a gain and haze per band, and noise."""
    centre, side = np.float32(0.72), np.float32(0.14)
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (1, 1)
        wide = np.pad(pixels, pad, mode="edge")
        n = wide.shape[axis]
        pixels = centre * wide.take(range(1, n - 1), axis) + side * (
            wide.take(range(n - 2), axis) + wide.take(range(2, n), axis)
        )
    gain = 1 + rng.uniform(-0.07, 0.07) + rng.uniform(-0.03, 0.03, (4, 1, 1))
    haze = rng.uniform(0, 1) * np.array([120, 80, 50, 20]).reshape(4, 1, 1)
    pixels = pixels * gain.astype(np.float32) + haze.astype(np.float32)
    pixels += (12 + 0.012 * pixels) * rng.standard_normal(pixels.shape, np.float32)
    return np.clip(np.rint(pixels), 1, 10000).astype(np.uint16)
