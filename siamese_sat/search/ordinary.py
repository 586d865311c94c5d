"""What the cosine of pooled vectors says where no pairs of validation chips do: how far it is above the ordinary.

Vectors of a network that was not trained to tell things apart are all much alike, and how much depends on the network
and on the scenes: a cosine by itself means nothing. So random windows of the searched scenes say what is ordinary, and
the exemplars, each left out in turn, what the class scores. From then on it is as with templates, see
`siamese_sat.search.score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from siamese_sat.search.score import ASKED, CERTAIN, ORDINARY, ScoreCurve, fit_curve
from siamese_sat.search.sliding import AROUND, Sliding, undisturbed
from siamese_sat.search.tile import Job

# Random places of the scenes, at most, and windows' sides that each has.
PLACES, SIDES = 12, 4
# So many windows at least, or nothing is said; where places hold nothing valid, others are drawn, so many times in all.
ENOUGH, ROUNDS = 32, 5


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
        """Cosines of any shape to probabilities in 0..1; what is no more than ordinary has 0, and 1 is not reached."""
        return self.curve((cosine - self.ordinary) / (1 - self.ordinary))

    def cosine(self, probability: float) -> float:
        """The least cosine of a probability in 0..1; of 0 minus infinity, of 1 infinity, and of little less above 1."""
        if probability <= 0:
            return -math.inf
        return self.ordinary + (1 - self.ordinary) * self.curve.raw(probability)

    def as_much_above(self, other: CosineCurve, probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What probabilities ``[n]`` by another curve are by this one: as far above the ordinary."""
        return self.curve(other.curve.raws(np.clip(probability, 0, CERTAIN)))


def fit_cosines(prototype: Tensor, views: Tensor, background: Tensor) -> CosineCurve:
    """What a class's cosines mean.

    Args:
        prototype: ``[D]`` of unit length.
        views: ``[exemplars, views, D]`` vectors of the exemplars; the first view is each as it is.
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
    if len(own):
        return CosineCurve(ordinary, fit_curve(own, raw))
    # More than is ordinary cannot be asked for a single one: a thing lies between windows, and the best that a cosine
    # can be may be little more. Nor is all of that asked where the thing itself is common.
    return CosineCurve(ordinary, ScoreCurve(float(np.clip(np.quantile(raw, ORDINARY), 1e-3, ASKED))))


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
        radiometry_of: of these, whole.
        window: width and height in scene pixels.
        size: pixels a side that a window is resized to.
        stride: of those pixels, between windows; at least half a window where each is embedded by itself.
        seed: the same seed draws the same places.

    Returns:
        None where there are fewer than 32, however often others are drawn.
    """
    areas = np.array([scene.megapixels for scene in scenes])
    # Dense windows see what lies round them: a place is then larger, and only its middle counts.
    around = AROUND if isinstance(source, Sliding) else 0
    sides = tuple((SIDES + 2 * around) * side for side in window)
    # No more than would cover the scenes once.
    count = min(PLACES, math.ceil(areas.sum() * 1e6 / math.prod(sides)))
    if not isinstance(source, Sliding):
        # Windows that overlap by more say little more, and each costs as much.
        stride = max(stride, size // 2)
    rng = np.random.default_rng(seed)
    whole: dict[Scene, Scene] = {}
    vectors = torch.empty(0)
    for _ in range(ROUNDS if count else 0):
        new: list[Scene] = []
        for number in np.sort(rng.choice(len(scenes), count, p=areas / areas.sum())).tolist():
            part = _part(scenes[number], sides, rng)
            if part not in whole:
                new.append(part)
                whole[part] = scenes[number]
        found = _windows(source, new, whole, radiometry_of, window, (size, stride), around > 0)
        vectors = torch.cat([vectors, found]) if len(vectors) else found
        if len(vectors) >= ENOUGH:
            return vectors
    return None


def _windows(
    source: Engine | Sliding,
    parts: Sequence[Scene],
    whole: Mapping[Scene, Scene],
    radiometry_of: RadiometryOf,
    window: tuple[int, int],
    grid: tuple[int, int],
    inside: bool,
) -> Tensor:
    """Vectors of parts of scenes, of each scene's own radiometry; if ``inside``, of what is `undisturbed` there."""
    inner = [box(*undisturbed(part, whole[part], window)) for part in parts]
    found = [torch.empty(0)]
    jobs = [Job(part, window) for part in parts]
    for got in source.vectors(jobs, lambda part: radiometry_of(whole[part]), *grid):
        if isinstance(got, Embedded):
            vectors = got.vectors.cpu()
            if inside:
                boxes = zip(got.jobs.tolist(), got.boxes.tolist(), strict=True)
                vectors = vectors[[inner[job].covers(box(*corners)) for job, corners in boxes]]
            found.append(vectors)
    return torch.cat([f for f in found if len(f)] or found)


def _part(scene: Scene, sides: Sequence[int], rng: np.random.Generator) -> Scene:
    """A random part of a scene with these sides, or as much as it has."""
    x0, y0, x1, y1 = scene.aoi
    width, height = min(sides[0], x1 - x0), min(sides[1], y1 - y0)
    x, y = x0 + int(rng.integers(x1 - x0 - width + 1)), y0 + int(rng.integers(y1 - y0 - height + 1))
    return scene.within((x, y, x + width, y + height))
