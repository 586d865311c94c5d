"""Re-ranking: what a search has found, taken together, says better than a few exemplars what is sought, and how surely.

Things resemble each other more than what is mistaken for them does, and stand as things of their kind do: alone or in
rows, on water or in a yard. So the scores of all candidates of a class are regressed on what each looks like, how large
it is, what was found round it and what the place looks like at large (`siamese_sat.search.scenery`), and each
candidate's score is moved towards what the regression makes of it, from the others alone: kernel ridge regression
(Saunders et al. 1998, "Ridge Regression Learning Algorithm in Dual Variables") by its own predictions, as in
self-training, with the leave-one-out residuals in closed form (Allen 1974, PRESS).

How many of them are right depends on how common such things are where it was searched, and on whether there are any:
what is mistaken for one where there is room for it grows with the archive, as they do, and where they are absent none
stands out. So the more candidates look wrong to a place, and the fewer surely right, the more is asked of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from sklearn.neighbors import KDTree
from torch import Tensor

from siamese_sat.search.detect import Candidates
from siamese_sat.search.score import AT_THRESHOLD

FloatArray = npt.NDArray[np.float64]
Looks = npt.NDArray[np.int8]

# Candidates below this score say nothing; of no more than it they never rise.
FLOOR = 0.04
# With so many candidates all of this counts half; with few a score says as much as they do together.
FADE = 20
# What is asked of a candidate, the moved logit at which its score is 0.3, is a sum. It grows with the logarithm of how
# many look wrong where there is room for so many things,
FOR_WRONG = 2.0
# falls with that of how many are surely right there,
FOR_SURE = 0.7
ROOM = 5000
# and begins here; of an archive many times as large, with as many times of both, as much is asked. Chosen so that 0.3
# balances precision and recall on six classes with 50 to 150,000 candidates where there is room for 1,400 to a million
# things (benchmarks/accuracy.py), and few places reach it where a class is absent (benchmarks/absent.py).
BASE = -10.0
# Candidates whose moved logit is above this are surely right.
SURE_LOGIT = 2.0
# No less is asked than this, of however few: they may all be wrong.
LEAST_ASKED = -1.0
# A moved logit tells right from wrong better than by its own odds.
STEEPNESS = 1.5
# Candidates that the regression is made from: half of them the best, the others evenly from the rest of the ranking.
MOST = 400
# Of the regression, the resemblance of two that look the same being 1.
RIDGE = 15.0
# What size and what was found round a candidate count beside looks,
STANDING = 0.3
# and what lies round it, of many; of few it would say no more than where they were found.
SURROUNDINGS = 1.5
MANY = 3000
# Radii within which others are counted, and the best of them is sought, as multiples of the candidate's own size.
AROUND = (4.0, 12.0)
BESIDE = 8.0
# Of cells, that looks are taken from: the first whitened dimensions, in so many parts of the template along a side.
DIMENSIONS = 64
GRID = 3
# Steps of a looks' number in 1; none of them is ever as large as half of that.
STEPS = 256
# Candidates of a class whose looks are kept, the best, until the last scene is searched; twice as many for a while,
# 26 to 52 MB. The others count as wrong and never rise.
KEPT = 40_000
# Scores that are certain have finite odds.
CERTAIN = 1e-9
# The logit that a score of 0.3 has.
MIDDLE = math.log(AT_THRESHOLD / (1 - AT_THRESHOLD))


def looks(cells: Tensor, contrast: float) -> Looks:
    """What places look like, ``[n, GRID * GRID * D]``, ``D`` up to `DIMENSIONS`: of length `STEPS`, but for rounding.

    Args:
        cells: ``[n, C, k, k]`` whitened.
        contrast: part of a place's mean cell that is taken off it.
    """
    some = cells[:, :DIMENSIONS].float()
    some = some - contrast * some.mean((2, 3), keepdim=True)
    found = F.normalize(F.adaptive_avg_pool2d(some, GRID).flatten(1), dim=1) * STEPS
    return np.asarray(found.round().clamp(-127, 127).cpu().numpy(), dtype=np.int8)


class Gathered:
    """The candidates of all scenes, until the last is searched.

    Args:
        weight: of the regression's prediction, the score's own logit being 1; 0 changes no score.
        sizes: longer side in pixels of a thing of each class; None where nobody knows.
        most: candidates of a class whose looks are kept.
    """

    def __init__(self, weight: float, sizes: Sequence[float] | None = None, most: int = KEPT) -> None:
        self.weight, self.sizes, self.most = weight, sizes, most
        self._areas: dict[str, float] = {}
        self._seen: dict[str, Candidates] = {}
        self._unseen: dict[str, list[Candidates]] = {}
        self._held: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, name: str, found: Candidates, area: float = 0.0) -> None:
        """Takes a scene's candidates, suppressed, and how many pixels it has; 0 where nobody knows."""
        self._areas[name] = area
        if self.weight == 0 or found.looks is None:
            self._seen[name], self._unseen[name] = found.at(np.empty(0, np.int64)), [found]
            return
        likely = found.scores >= FLOOR
        self._seen[name], self._unseen[name] = found.at(likely), [found.at(~likely).blind]
        counts = np.bincount(found.classes[likely], minlength=len(self._held))
        counts[: len(self._held)] += self._held
        self._held = counts
        if (self._held > 2 * self.most).any():
            self._forget()

    def conclude(self, names: Sequence[str]) -> dict[str, Candidates]:
        """Each scene's candidates by their new scores; those of ``names`` that were added, in that order."""
        self._forget()
        names = [name for name in names if name in self._seen]
        seen, ends = _joined([self._seen[name] for name in names])
        unseen, others = _joined([Candidates.join(self._unseen[name]) for name in names])
        scenes = np.repeat(np.arange(len(names)), np.diff(ends, prepend=0))
        area = sum(self._areas[name] for name in names)
        room = [area / max(size, 1) ** 2 for size in self.sizes] if self.sizes is not None and area > 0 else None
        seen, unseen = rerank(seen, scenes, unseen, self.weight, room)
        parts = zip(_parts(seen, ends), _parts(unseen, others), strict=True)
        return {name: Candidates.join([*pair]) for name, pair in zip(names, parts, strict=True)}

    def _forget(self) -> None:
        """Drops the looks of all but the best of each class, whichever scene came first."""
        if not (self._held > self.most).any():
            return
        classes = np.concatenate([found.classes for found in self._seen.values()])
        scores = np.concatenate([found.scores for found in self._seen.values()])
        cut = np.zeros(len(self._held))
        for number in np.flatnonzero(self._held > self.most):
            cut[number] = np.partition(scores[classes == number], -self.most)[-self.most]
        for name, found in self._seen.items():
            keep = found.scores >= cut[found.classes]
            if not keep.all():
                self._unseen[name].append(found.at(~keep).blind)
                self._seen[name] = found.at(keep)
        kept = np.concatenate([found.classes for found in self._seen.values()])
        self._held = np.bincount(kept, minlength=len(self._held))


def rerank(
    seen: Candidates,
    scenes: npt.NDArray[np.int64],
    unseen: Candidates,
    weight: float,
    room: Sequence[float] | None = None,
) -> tuple[Candidates, Candidates]:
    """The same candidates with new scores, class by class.

    Args:
        seen: suppressed, of all scenes, of at least `FLOOR`, with ``looks``.
        scenes: ``[n]`` number of each one's scene.
        unseen: the others, of which only their number is known; their scores never rise.
        weight: of the regression's prediction, the score's own logit being 1; 0 changes nothing.
        room: for how many things of each class there was room in what was searched; None: for `ROOM`.
    """
    if seen.looks is None or weight == 0:
        return seen, unseen
    scores, others = seen.scores.copy(), unseen.scores.copy()
    for number in np.unique(seen.classes):
        mine, theirs = seen.classes == number, np.flatnonzero(unseen.classes == number)
        part = float(mine.sum() / (mine.sum() + FADE))
        moved = _moved(seen.at(mine), scenes[mine], weight * part)
        wrong = int((moved < 0).sum() + (unseen.scores[theirs] >= FLOOR).sum())
        least = _asked(wrong, int((moved > SURE_LOGIT).sum()), ROOM if room is None else room[number])
        asked = part * least + (1 - part) * MIDDLE
        steep = part * STEEPNESS + (1 - part)
        found = _probability(steep * (moved - asked) + MIDDLE)
        scores[mine] = np.where(seen.scores[mine] > FLOOR, found, np.minimum(found, seen.scores[mine]))
        by_number = _probability(steep * (_logit(others[theirs]) - asked) + MIDDLE)
        others[theirs] = np.minimum(others[theirs], by_number)
    return replace(seen, scores=scores), replace(unseen, scores=others)


def _asked(wrong: int, sure: int, room: float) -> float:
    """The moved logit at which a score is 0.3, of so many that look wrong and so many that are surely right in it."""
    common = (FOR_WRONG - FOR_SURE) * math.log(room / ROOM)
    return max(BASE + FOR_WRONG * math.log1p(wrong) - FOR_SURE * math.log1p(sure) - common, LEAST_ASKED)


def _joined(parts: Sequence[Candidates]) -> tuple[Candidates, npt.NDArray[np.int64]]:
    """All parts as one, and where each ends in it."""
    return Candidates.join(list(parts)), np.cumsum([len(part.scores) for part in parts], dtype=np.int64)


def _parts(found: Candidates, ends: npt.NDArray[np.int64]) -> list[Candidates]:
    return [found.at(np.arange(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _logit(scores: FloatArray) -> FloatArray:
    sure = scores.clip(CERTAIN, 1 - CERTAIN)
    found: FloatArray = np.log(sure / (1 - sure))
    return found


def _probability(logit: FloatArray) -> FloatArray:
    found: FloatArray = 1 / (1 + np.exp(-logit.clip(-700, 700)))
    return found


def _moved(found: Candidates, scenes: npt.NDArray[np.int64], weight: float) -> FloatArray:
    """Logits ``[n]`` of one class's scores, each plus ``weight`` times what the others make of it."""
    assert found.looks is not None
    logit = _logit(found.scores)
    parts = [_unit(found.looks), np.sqrt(STANDING) * _standing(found.scores, found.boxes, scenes)]
    if found.surroundings is not None:
        counts = SURROUNDINGS * len(logit) / (len(logit) + MANY)
        parts.append(np.sqrt(counts) * _distinct(found.surroundings))
    features = np.concatenate(parts, axis=1, dtype=np.float32)
    order = np.argsort(-logit, kind="stable")
    rest = order[MOST // 2 :]
    spread = rest[np.unique(np.linspace(0, len(rest) - 1, MOST // 2).round().astype(int))] if len(rest) else rest
    chosen = np.sort(np.concatenate([order[: MOST // 2], spread]))
    own = features[chosen].astype(np.float64)
    kernel = own @ own.T
    inverse = np.linalg.inv(kernel + RIDGE * np.eye(len(chosen)))
    mean = logit[chosen].mean()
    dual = inverse @ (logit[chosen] - mean)
    says = (features @ (own.T @ dual).astype(np.float32)).astype(np.float64)
    # A candidate must not be its own witness.
    says[chosen] = logit[chosen] - mean - dual / inverse.diagonal()
    moved: FloatArray = logit + weight * says
    return moved


def _standing(scores: FloatArray, boxes: FloatArray, scenes: npt.NDArray[np.int64]) -> FloatArray:
    """Size and what else was found near, ``[n, 4]``, standardised and together of about unit length."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = np.sqrt(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9).prod(axis=1))
    near = np.zeros((len(boxes), len(AROUND) + 1))
    for scene in np.unique(scenes):
        here = np.flatnonzero(scenes == scene)
        close = KDTree(centre[here]).query_radius(centre[here], max(AROUND) * size[here])
        for own, numbers in zip(here, close, strict=True):
            others = here[numbers]
            others = others[others != own]
            far = np.hypot(*(centre[others] - centre[own]).T) / size[own]
            near[own, :-1] = [scores[others[far < radius]].sum() for radius in AROUND]
            near[own, -1] = scores[others[far < BESIDE]].max(initial=0.0)
    near[:, :-1] = np.log1p(3 * near[:, :-1])
    every = np.concatenate([near, np.log(size)[:, None]], axis=1)
    spread = every.std(axis=0)
    found: FloatArray = (every - every.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0) / np.sqrt(every.shape[1])
    return found


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    numbers = vectors.astype(np.float32)
    found: npt.NDArray[np.float32] = numbers / np.maximum(np.linalg.norm(numbers, axis=1, keepdims=True), 1e-6)
    return found


def _distinct(surroundings: Looks) -> npt.NDArray[np.float32]:
    """Of unit length, less what all have in common; zeros where nothing is known."""
    known = surroundings.any(axis=1, keepdims=True)
    mean = surroundings.mean(axis=0, where=known) if known.any() else 0.0
    return _unit((surroundings - mean) * known)
