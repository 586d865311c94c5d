"""Re-ranking: what a search has found, taken together, says better than a few exemplars what is sought, and how surely.

Things resemble each other more than what is mistaken for them does, and stand as things of their kind do: alone or in
rows. So the scores of all candidates of a class are regressed on what each looks like, how large it is and what was
found round it, and each candidate's score is moved towards what the regression makes of it, from the others alone:
kernel ridge regression (Saunders et al. 1998, "Ridge Regression Learning Algorithm in Dual Variables") by its own
predictions, as in self-training, with the leave-one-out residuals in closed form (Allen 1974, PRESS).

How many of them are right depends on how much was searched: the things are few, and what is mistaken for them grows
with the archive. So the more candidates there are, the more is asked of each: by Bayes' rule the odds that a candidate
is right are divided by their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from sklearn.neighbors import KDTree
from torch import Tensor

from siamese_sat.search.detect import Candidates
from siamese_sat.search.score import AT_THRESHOLD

FloatArray = npt.NDArray[np.float64]

# Candidates below this score say nothing and never rise: so what is found does not depend on how little is asked for.
FLOOR = 0.04
# Fewer candidates of a class say too little.
FEWEST = 20
# Of so many candidates that are right where their logit is 0, 0.3 of those there are; chosen so that this balances
# precision and recall (benchmarks/accuracy.py), on six classes in 1 to 100 megapixels with 40 to 20,000 candidates.
TYPICAL = 400
# Of fewer than some 90 no less is asked: so few may all be wrong.
LEAST_ASKED = -1.5
# A logit, moved, tells right from wrong better than by its own odds.
STEEPNESS = 1.5
# Candidates that the regression is made from: half of them the best, the others evenly from the rest of the ranking.
MOST = 1000
# Of the regression, the resemblance of two that look the same being 1.
RIDGE = 10.0
# What size and surroundings count beside looks.
STANDING = 0.1
# Radii within which others are counted, and the best of them is sought, as multiples of the candidate's own size.
AROUND = (4.0, 12.0)
BESIDE = 8.0
# Of cells, that looks are taken from: the first whitened dimensions, in so many parts of the template along a side.
DIMENSIONS = 64
GRID = 4
# Candidates of a class whose looks are kept, the best, until the last scene is searched: 40 MB. Of an archive with more
# of them so much is asked that the others have no prospect.
KEPT = 20_000
# Scores that are certain have finite odds.
SURE = 1e-9


def looks(cells: Tensor, contrast: float) -> npt.NDArray[np.float16]:
    """What places look like, ``[n, GRID * GRID * D]`` of unit length with ``D`` up to `DIMENSIONS`.

    Args:
        cells: ``[n, C, k, k]`` whitened.
        contrast: part of a place's mean cell that is taken off it.
    """
    some = cells[:, :DIMENSIONS].float()
    some = some - contrast * some.mean((2, 3), keepdim=True)
    found = F.normalize(F.adaptive_avg_pool2d(some, GRID).flatten(1), dim=1)
    return np.asarray(found.half().cpu().numpy(), dtype=np.float16)


class Gathered:
    """The candidates of all scenes, until the last is searched.

    Args:
        weight: of the regression's prediction, the score's own logit being 1; 0 changes no score.
        most: candidates of a class whose looks are kept.
    """

    def __init__(self, weight: float, most: int = KEPT) -> None:
        self.weight, self.most = weight, most
        self._found: dict[str, Candidates] = {}
        self._unseen: dict[str, list[Candidates]] = {}
        self._held: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, name: str, found: Candidates) -> None:
        """Takes a scene's candidates, suppressed."""
        self._found[name], self._unseen[name] = found, []
        counts = np.bincount(found.classes, minlength=len(self._held))
        counts[: len(self._held)] += self._held
        self._held = counts
        if found.looks is not None and (self._held > 2 * self.most).any():
            self._forget()

    def conclude(self, names: Sequence[str]) -> dict[str, Candidates]:
        """Each scene's candidates by their new scores; those of ``names`` that were added, in that order."""
        self._forget()
        names = [name for name in names if name in self._found]
        every = Candidates.join([self._found[name] for name in names])
        scenes = np.repeat(np.arange(len(names)), [len(self._found[name].scores) for name in names])
        unseen = {name: Candidates.join(self._unseen[name]) for name in names}
        every = rerank(every, scenes, self.weight, Candidates.join(list(unseen.values())))
        counts = _counts(every, *unseen.values())
        return {
            name: Candidates.join([every.at(scenes == i), _by_number(unseen[name], counts)])
            for i, name in enumerate(names)
        }

    def _forget(self) -> None:
        """Drops the looks of all but the best of each class, whichever scene came first."""
        if self.weight == 0 or not (self._held > self.most).any():
            return
        classes = np.concatenate([found.classes for found in self._found.values()])
        scores = np.concatenate([found.scores for found in self._found.values()])
        cut = np.zeros(len(self._held))
        for number in np.flatnonzero(self._held > self.most):
            mine = scores[classes == number]
            if len(mine) > self.most:
                cut[number] = np.partition(mine, -self.most)[-self.most]
        for name, found in self._found.items():
            keep = found.scores >= cut[found.classes]
            if found.looks is not None and not keep.all():
                self._unseen[name].append(replace(found.at(~keep), looks=None))
                self._found[name] = found.at(keep)
        kept = [found.classes for found in self._found.values()]
        self._held = np.bincount(np.concatenate(kept), minlength=len(self._held))


def rerank(
    found: Candidates, scenes: npt.NDArray[np.int64], weight: float, unseen: Candidates | None = None
) -> Candidates:
    """The same candidates with new scores, class by class.

    Args:
        found: suppressed, of all scenes; those without ``looks``, or too few of a class, stay as they are.
        scenes: ``[n]`` number of each one's scene.
        weight: of the regression's prediction, the score's own logit being 1; 0 changes nothing.
        unseen: more candidates, which count.
    """
    if found.looks is None or weight == 0:
        return found
    scores = found.scores.copy()
    counts = _counts(found, *([unseen] if unseen is not None else []))
    for number in np.unique(found.classes):
        mine = np.flatnonzero(found.classes == number)
        own = found.scores[mine]
        if counts[number] >= FEWEST:
            moved = _moved(own, found.looks[mine], found.boxes[mine], scenes[mine], weight)
            new = _probability(moved, int(counts[number]))
            scores[mine] = np.where(own >= FLOOR, new, np.minimum(new, own))
    return replace(found, scores=scores)


def _counts(*parts: Candidates) -> npt.NDArray[np.int64]:
    """How many candidates of each class, by its number, reach `FLOOR`."""
    likely = [part.classes[part.scores >= FLOOR] for part in parts]
    classes = max((int(part.classes.max()) + 1 for part in parts if len(part.classes)), default=0)
    return np.bincount(np.concatenate(likely), minlength=classes) if likely else np.zeros(0, np.int64)


def _by_number(unseen: Candidates, counts: npt.NDArray[np.int64]) -> Candidates:
    """Candidates whose looks are forgotten: nothing is said of them but how many there are."""
    scores = unseen.scores.copy()
    for number in np.unique(unseen.classes):
        mine = unseen.classes == number
        scores[mine] = np.minimum(_probability(_logit(scores[mine]), int(counts[number])), scores[mine])
    return replace(unseen, scores=scores)


def _probability(moved: FloatArray, count: int) -> FloatArray:
    """Of moved logits, of one of so many candidates."""
    asked = max(math.log(count / TYPICAL), LEAST_ASKED)
    odds = np.exp(np.minimum(STEEPNESS * (moved - asked), 700.0)) * AT_THRESHOLD / (1 - AT_THRESHOLD)
    found: FloatArray = odds / (1 + odds)
    return found


def _logit(scores: FloatArray) -> FloatArray:
    sure = scores.clip(SURE, 1 - SURE)
    found: FloatArray = np.log(sure / (1 - sure))
    return found


def _moved(
    scores: FloatArray, looks: npt.NDArray[np.float16], boxes: FloatArray, scenes: npt.NDArray[np.int64], weight: float
) -> FloatArray:
    """Logits ``[n]`` of one class's scores, each plus ``weight`` times what the others make of it.

    The others are those of at least `FLOOR`.
    """
    logit = _logit(scores)
    standing = _standing(scores, boxes, scenes)
    features = np.concatenate([looks.astype(np.float64), np.sqrt(STANDING) * standing], axis=1)
    order = np.argsort(-logit, kind="stable")[: int((scores >= FLOOR).sum())]
    rest = order[MOST // 2 :]
    spread = rest[np.unique(np.linspace(0, len(rest) - 1, MOST // 2).round().astype(int))] if len(rest) else rest
    chosen = np.sort(np.concatenate([order[: MOST // 2], spread]))
    kernel = features[chosen] @ features[chosen].T
    inverse = np.linalg.inv(kernel + RIDGE * np.eye(len(chosen)))
    mean = logit[chosen].mean()
    dual = inverse @ (logit[chosen] - mean)
    says = features @ (features[chosen].T @ dual)
    # A candidate must not be its own witness.
    says[chosen] = logit[chosen] - mean - dual / inverse.diagonal()
    found: FloatArray = logit + weight * says
    return found


def _standing(scores: FloatArray, boxes: FloatArray, scenes: npt.NDArray[np.int64]) -> FloatArray:
    """Size and what else was found near, ``[n, 4]``, standardised and together of about unit length."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = np.sqrt(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9).prod(axis=1))
    near = np.zeros((len(boxes), len(AROUND) + 1))
    likely = scores >= FLOOR
    for scene in np.unique(scenes):
        here = np.flatnonzero(scenes == scene)
        heard = here[likely[here]]
        if not len(heard):
            continue
        close = KDTree(centre[heard]).query_radius(centre[here], max(AROUND) * size[here])
        for own, numbers in zip(here, close, strict=True):
            others = heard[numbers]
            others = others[others != own]
            far = np.hypot(*(centre[others] - centre[own]).T) / size[own]
            near[own, :-1] = [scores[others[far < radius]].sum() for radius in AROUND]
            near[own, -1] = scores[others[far < BESIDE]].max(initial=0.0)
    near[:, :-1] = np.log1p(3 * near[:, :-1])
    every = np.concatenate([near, np.log(size)[:, None]], axis=1)
    mean, spread = every[likely].mean(axis=0), every[likely].std(axis=0)
    found: FloatArray = (every - mean) / np.where(spread > 1e-6, spread, 1.0) / np.sqrt(every.shape[1])
    return found
