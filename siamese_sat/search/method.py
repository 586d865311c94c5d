"""What every way of searching offers to the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from siamese_sat.data.radiometry import RadiometryOf
from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.part import Part

__all__ = [
    "Divisible", "ManyScenes", "OwnScales", "RadiometryOf", "SearchMethod", "on_scale_of", "rerank_of", "sizes_of",
    "vote_iou_of",
]  # fmt: skip


class SearchMethod(Protocol):
    """Exemplars in, scored places out; reading, suppression and output lie elsewhere."""

    @property
    def classes(self) -> list[str]:
        """Names of what is searched for, in the order of their numbers; known after `prepare`."""

    def prepare(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        radiometry_of: RadiometryOf,
        scenes: Sequence[Scene],
    ) -> None:
        """Gets ready to search ``scenes`` for what the exemplars show.

        Raises:
            InputError: a setting or an exemplar cannot be used.
        """

    def windows(self, scene: Scene) -> dict[str, int]:
        """How many places of the scene each class is compared at."""

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """Places that reach their class's threshold, part by part.

        Raises:
            InputError: the scene cannot be read.
        """


@runtime_checkable
class ManyScenes(Protocol):
    """A method that searches many scenes at a go, and so does not stop between them."""

    def candidates_of(
        self, scenes: Mapping[str, Scene], thresholds: Mapping[str, float]
    ) -> Iterator[tuple[str, Candidates | InputError]]:
        """Each scene's places, all together, or why it cannot be searched; scenes come in their order, each once."""


@runtime_checkable
class Divisible(Protocol):
    """A method that can search some tiles of a scene here and the others elsewhere, with the same result."""

    def some(self, scene: Scene, thresholds: Mapping[str, float], part: Part) -> Iterator[Candidates]:
        """Places in a part of the scene's tiles, seen with all that lies round them.

        Raises:
            InputError: the scene cannot be read.
        """

    def whole(self, found: Candidates, thresholds: Mapping[str, float]) -> Candidates:
        """What `candidates` gives, from what all parts have given."""


def vote_iou_of(method: SearchMethod) -> float:
    """Overlap from which a method's boxes put each other right, see `siamese_sat.search.voting`; 0: they do not."""
    return float(getattr(method, "vote_iou", 0.0))


@runtime_checkable
class OwnScales(Protocol):
    """A method that learns what a score means class by class."""

    def on_scale(self, number: int, found: Candidates) -> npt.NDArray[np.float64]:
        """What scores ``[n]`` of places of any classes would be, did class ``number`` resemble them as much."""


def on_scale_of(method: SearchMethod, number: int, found: Candidates) -> npt.NDArray[np.float64]:
    """Scores ``[n]`` of places of any classes on the scale of one: as they are where all share it, see `OwnScales`."""
    return method.on_scale(number, found) if isinstance(method, OwnScales) else found.scores


def rerank_of(method: SearchMethod) -> float:
    """Weight of what a method's candidates say of each other, see `siamese_sat.search.rerank`; 0: nothing."""
    return float(getattr(method, "rerank", 0.0))


def sizes_of(method: SearchMethod) -> Sequence[float] | None:
    """Scene pixels of the longer side of the median exemplar of each class, in their order; None: it does not say."""
    sizes: Sequence[float] | None = getattr(method, "sizes", None)
    return sizes
