"""An exemplar as a picture: cut with its surroundings, brought to size, turned, and how its box turns with it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import SceneReader
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.level import apron_of, blurred

# A thing is taken to be at least this wide, as a part of its length.
SLIMMEST = 0.15
# And to lean no more than this: poor features can crowd on a diagonal, and a box would shrink to a line.
STEEPEST = 0.8


def sides_of(exemplar: Exemplar) -> tuple[float, float]:
    """Width and height of the exemplar's box in scene pixels."""
    x0, y0, x1, y1 = exemplar.box
    return x1 - x0, y1 - y0


def upright(
    exemplar: Exemplar, radiometry: Radiometry, scale: float, half: int, device: torch.device, blur: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The exemplar's surroundings resized by ``scale``: ``[C + 1, n, n]`` normalised, the last channel its validity.

    Centred on the middle of the image, and wide enough to be turned by any angle. Under a Gaussian of ``blur`` of
    its pixels, see `blurred`.
    """
    x0, y0, x1, y1 = exemplar.box
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    wide = math.ceil(half * math.sqrt(2)) + 2
    radius = math.ceil((wide + 2 + apron_of(blur)) / scale) + 1
    left, top = math.floor(cx) - radius, math.floor(cy) - radius
    with SceneReader(exemplar.scene) as reader:
        raw, valid = reader.read(left, top, 2 * radius, 2 * radius)
    stored = torch.from_numpy(radiometry.fill(raw, valid)).to(device)
    mask = torch.from_numpy(valid.astype(np.float32)).to(device)
    both = torch.cat([radiometry.normalise(stored), mask[None]])[None]
    size = max(1, round(2 * radius * scale))
    level = resize(both, size, size)
    if blur:
        level = torch.cat([blurred(level[0, :-1], blur), level[0, -1:]])[None]
    # Sampled about the exact centre: box centres and resized sizes are not whole.
    ratio = size / (2 * radius)
    grid = torch.arange(-wide, wide + 1, device=device, dtype=torch.float32) * (ratio / scale)
    x = ((cx - left) * ratio + grid) / size * 2 - 1
    y = ((cy - top) * ratio + grid) / size * 2 - 1
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    image = F.grid_sample(level, places, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return image, mask


def rotate(image: Tensor, angle: float, half: int) -> Tensor:
    """The middle ``2 * half + 1`` pixels of ``[C, n, n]`` turned by ``angle`` (radians) about the middle pixel."""
    n = image.shape[-1]
    offset = torch.arange(-half, half + 1, device=image.device, dtype=torch.float32)
    dy, dx = torch.meshgrid(offset, offset, indexing="ij")
    c, s = math.cos(angle), math.sin(angle)
    x, y = (c * dx - s * dy) / (n / 2), (s * dx + c * dy) / (n / 2)
    places = torch.stack([x, y], dim=-1)[None]
    return F.grid_sample(image[None], places, mode="bilinear", padding_mode="border", align_corners=False)[0]


def lean_of(cells: Tensor, sides: tuple[float, float], stride: int, object_size: float) -> float:
    """Correlation of x and y over the thing, -1..1, from where in its box the features ``[D, n, n]`` stand out."""
    half = cells.shape[-1] // 2
    energy = cells.square().sum(0).double().cpu().numpy()
    place = np.arange(-half, half + 1) * float(stride)
    y, x = np.meshgrid(place, place, indexing="ij")
    width, height = (side * object_size / max(sides) for side in sides)
    inside = (np.abs(x) <= width / 2) & (np.abs(y) <= height / 2)
    weight = np.where(inside, energy - np.median(energy[~inside] if (~inside).any() else 0.0), 0.0).clip(min=0)
    if weight.sum() <= 0:
        return 0.0
    weight /= weight.sum()
    dx, dy = x - (weight * x).sum(), y - (weight * y).sum()
    spread = (weight * dx**2).sum() * (weight * dy**2).sum()
    found = float((weight * dx * dy).sum() / np.sqrt(spread)) if spread > 0 else 0.0
    return min(max(found, -STEEPEST), STEEPEST)


def view_sides(
    sides: tuple[float, float], lean: float, views: int, object_size: float, oblique_trust: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Extent ``[views, 2]`` of the thing in each view, level pixels, and how much to trust it ``[views]``.

    The thing is taken for an ellipse that touches its box and leans as its features do: turned by an angle, the
    ellipse's box is known. A disc keeps its box, a ship that lay across a square box gets a slim one.
    """
    width, height = np.asarray(sides) * object_size / max(sides)
    angle = np.arange(views) * 2 * np.pi / views
    c, s = np.cos(angle), np.sin(angle)
    cross = 2 * lean * width * height * c * s
    squares = [(width * c) ** 2 + (height * s) ** 2 + cross, (width * s) ** 2 + (height * c) ** 2 - cross]
    found = np.sqrt(np.stack(squares, axis=1).clip(min=0))  # a line leans by exactly 1, or by a rounding more
    oblique = np.minimum(np.abs(c), np.abs(s)) > 1e-6
    return np.maximum(found, object_size * SLIMMEST), np.where(oblique, oblique_trust, 1.0)
