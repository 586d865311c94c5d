"""What the cosine of pooled vectors says where no training has fitted a calibration: how far it is above the ordinary.

Vectors of a network that was not trained to tell things apart are all much alike, and how much depends on the network
and on the scenes: a cosine by itself means nothing. So random windows of the searched scenes say what is ordinary, and
the exemplars, each left out in turn, what the class scores. From then on it is as with templates, see
`siamese_sat.search.score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from shapely import box
from torch import Tensor

from siamese_sat.data.radiometry import RadiometryOf
from siamese_sat.data.scene import Scene
from siamese_sat.search.engine import Embedded, Engine
from siamese_sat.search.score import ScoreCurve, fit_curve
from siamese_sat.search.sliding import AROUND, Sliding, undisturbed
from siamese_sat.search.tile import Job

# Random places of the scenes, and windows' sides that each has; so many windows at least, or nothing is said.
PLACES, SIDES, ENOUGH = 12, 4, 32


@dataclass(frozen=True)
class CosineCurve:
    """Probability of a cosine: a `ScoreCurve` of its distance from what is ordinary to 1, the ordinary being 0.

    Attributes:
        ordinary: median cosine of a class with windows of the searched scenes, below 1.
        curve: of that distance.
    """

    ordinary: float
    curve: ScoreCurve

    def __call__(self, cosine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Cosines of any shape to probabilities in 0..1; what is no more than ordinary has 0."""
        return self.curve((cosine - self.ordinary) / (1 - self.ordinary))

    def cosine(self, probability: float | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The cosines of probabilities of any shape, in 0..1; 1 is as what is nearly 1."""
        return self.ordinary + (1 - self.ordinary) * self.curve.raws(np.clip(probability, 0, 1 - 1e-9))


def fit_cosines(prototype: Tensor, views: Tensor, background: Tensor) -> CosineCurve:
    """What a class's cosines mean.

    Args:
        prototype: ``[D]`` of unit length.
        views: ``[exemplars, views, D]`` their vectors; the first view is the exemplar as it is.
        background: ``[n, D]`` of windows of the searched scenes.
    """
    cosines = (background.double() @ prototype.double()).cpu().numpy()
    ordinary = min(float(np.median(cosines)), 1 - 1e-6)
    left_out = np.empty(0)
    if len(views) > 1:
        total = views.double().sum((0, 1))
        others = F.normalize(total - views.double().sum(1), dim=1)
        left_out = (views[:, 0].double() * others).sum(1).cpu().numpy()
    raw, own = ((values - ordinary) / (1 - ordinary) for values in (cosines, left_out))
    return CosineCurve(ordinary, fit_curve(own, raw))


@torch.inference_mode()
def random_windows(
    source: Engine | Sliding,
    scenes: Sequence[Scene],
    radiometry_of: RadiometryOf,
    window: tuple[int, int],
    size: int,
    stride: int,
    seed: int = 0,
) -> Tensor | None:
    """Vectors ``[n, D]`` of windows at random places of the scenes, drawn evenly over their area.

    Args:
        source: of vectors.
        scenes: those that cannot be read give none.
        radiometry_of: of these.
        window: width and height in scene pixels.
        size: pixels a side that a window is resized to.
        stride: of those pixels, between windows.
        seed: the same seed draws the same places.

    Returns:
        None where there are fewer than 32.
    """
    if not scenes:
        return None
    # Dense windows see what lies round them: a place is then larger, and only its middle counts.
    around = AROUND if isinstance(source, Sliding) else 0
    places = _places(scenes, tuple((SIDES + 2 * around) * side for side in window), np.random.default_rng(seed))
    inner = [box(*(undisturbed(part, scene, window) if around else part.aoi)) for part, scene in places]
    found = []
    for got in source.vectors([Job(part, window) for part, _ in places], radiometry_of, size, stride):
        if isinstance(got, Embedded):
            good = [inner[job].covers(box(*b)) for job, b in zip(got.jobs.tolist(), got.boxes.tolist(), strict=True)]
            found.append(got.vectors.cpu()[good])
    vectors = torch.cat(found) if found else torch.empty(0)
    return vectors if len(vectors) >= ENOUGH else None


def _places(scenes: Sequence[Scene], sides: Sequence[int], rng: np.random.Generator) -> list[tuple[Scene, Scene]]:
    """Parts of scenes, each once, with the scene of each."""
    areas = np.array([scene.megapixels for scene in scenes])
    found: dict[tuple[int, ...], tuple[Scene, Scene]] = {}
    for number in np.sort(rng.choice(len(scenes), PLACES, p=areas / areas.sum())).tolist():
        x0, y0, x1, y1 = scenes[number].aoi
        width, height = min(sides[0], x1 - x0), min(sides[1], y1 - y0)
        x, y = x0 + int(rng.integers(x1 - x0 - width + 1)), y0 + int(rng.integers(y1 - y0 - height + 1))
        part = scenes[number].within((x, y, x + width, y + height))
        found.setdefault((number, *part.aoi), (part, scenes[number]))
    return list(found.values())
