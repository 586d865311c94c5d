"""Comparing places closely with what a class is searched with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siamese_sat.search.consensus import Consensus
from siamese_sat.search.level import UNIT, blur_of
from siamese_sat.search.score import ScoreCurve

FloatArray = npt.NDArray[np.float64]

# Of the resemblance of a place that is larger than all that the exemplars ask for, this part counts.
BEYOND_LARGEST = 0.9
# Sizes that differ by less than this part are one.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Rendition:
    """Exemplars of a class, brought to one size.

    Attributes:
        appears: level pixels of their longer sides.
        consensus: of them, turned alike.
        deep: the same in the deep stage, or None.
        sizes: ``[exemplars]`` longer sides in scene pixels.
        sides: ``[exemplars, views, 2]`` width and height of the thing in that view, in level pixels.
        trust: ``[exemplars, views]`` how much the view says of width and height.
        steps: levels to search with this one, scene pixels per 128 level pixels.
        largest: scene pixels of the largest things that the exemplars ask for; larger ones are sought beside them.
        grain: level pixels that a scene pixel covers in these levels, at least, and in the exemplars; 0: as they are.
    """

    appears: float
    consensus: Consensus
    deep: Consensus | None
    sizes: FloatArray
    sides: FloatArray
    trust: FloatArray
    steps: tuple[int, ...]
    largest: float
    grain: float = 0.0

    @property
    def levels(self) -> tuple[tuple[int, float], ...]:
        """Their levels, each with its blur in level pixels."""
        return tuple((step, blur_of(UNIT / step, self.grain)) for step in self.steps)


@dataclass(frozen=True)
class Template:
    """What one class is searched with.

    Attributes:
        name: of the class.
        renditions: of its exemplars, one for every size at which they are sought in a level.
        left_out: ``[exemplars]`` score of each exemplar by the others; empty for a single one.
        background: scores of local maxima at random places of the searched scenes.
        curve: raw score to probability.
    """

    name: str
    renditions: tuple[Rendition, ...]
    left_out: FloatArray
    background: FloatArray
    curve: ScoreCurve

    @property
    def steps(self) -> tuple[int, ...]:
        """Levels to search, scene pixels per 128 level pixels, rising."""
        return tuple(sorted({s for r in self.renditions for s in r.steps}))


@dataclass(frozen=True)
class Matcher:
    """How places and templates are compared.

    Attributes:
        views: rotations of an exemplar.
        deep_weight: of the deep stage's cosine, that of the first being 1.
        size_spread: natural logarithm of the ratio of sizes at which a resemblance counts for 0.6 of itself.
        dtype: in which cells and kernels are multiplied.
    """

    views: int
    deep_weight: float
    size_spread: float
    dtype: torch.dtype

    def closer(
        self, rendition: Rendition, places: Tensor, deep: Tensor | None, step: float
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
        """Every exemplar's own score ``[n, exemplars]`` of places, that of the first stage alone, and its best view.

        The score is the weighted mean of the stages' cosines, each in its best view, less where the place's size is far
        from the exemplar's: a Gaussian of the logarithm of their ratio. Places larger than all that the exemplars ask
        for count as the largest of these, but for a tenth: few exemplars seldom show the largest of what is sought.

        Args:
            rendition: of the class, for this level.
            places: ``[n, D, cells, cells]``.
            deep: ``[n, D, deep_cells, deep_cells]``, or None.
            step: of their level.
        """
        cosine, view = rendition.consensus.cosines(places).max(dim=2)
        size = rendition.appears * step / UNIT
        off = np.log(min(size, rendition.largest) / rendition.sizes) / self.size_spread
        likely = np.exp(-(off**2) / 2) * (BEYOND_LARGEST if size > rendition.largest * (1 + ROUNDING) else 1.0)
        first = cosine.double().cpu().numpy() * likely
        if rendition.deep is None or deep is None:
            return first, first, view.cpu().numpy()
        further = rendition.deep.cosines(deep).amax(dim=2).double().cpu().numpy() * likely
        return (first + self.deep_weight * further) / (1 + self.deep_weight), first, view.cpu().numpy()

    def vote(self, rendition: Rendition, scores: FloatArray, views: npt.NDArray[np.int64]) -> FloatArray:
        """Width and height ``[n, 2]`` in level pixels: the mean of logs over exemplars, the better heard more.

        Args:
            rendition: of the class.
            scores: ``[n, exemplars]``.
            views: ``[n, exemplars]`` in which each scores best.
        """
        exemplar = np.arange(scores.shape[1])[None]
        logs = np.log(rendition.sides)[exemplar, views]
        weight = np.exp(10 * (scores - scores.max(axis=1, keepdims=True))) * rendition.trust[exemplar, views]
        mean: FloatArray = np.exp((logs * weight[..., None]).sum(1) / weight.sum(1)[:, None])
        return mean
