"""Scene after scene through one method, here or shared out among workers."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.progress import progress
from siamese_sat.scaleout.pool import Pool
from siamese_sat.search.detect import Candidates, best_first, suppress, to_frame
from siamese_sat.search.method import Divisible, ManyScenes, SearchMethod, rerank_of, sizes_of, vote_iou_of
from siamese_sat.search.part import Part
from siamese_sat.search.parts import Parts
from siamese_sat.search.rerank import FLOOR, Gathered
from siamese_sat.search.voting import heard


@dataclass(frozen=True)
class Found:
    """What a search of several scenes gave.

    Attributes:
        detections: columns as in detections.csv, best first.
        failed: path of a scene that could not be searched -> the reason.
        compared: class -> how many places were compared.
        seconds: that it took.
        taken: how many scenes an earlier run had searched.
    """

    detections: pd.DataFrame
    failed: dict[str, str]
    compared: dict[str, int]
    seconds: float
    taken: int = 0


@dataclass(frozen=True)
class Workers:
    """Who searches.

    Attributes:
        pool: of workers.
        split_mpx: a scene of more megapixels is shared out in parts of about so many.
    """

    pool: Pool
    split_mpx: float = math.inf


@dataclass(frozen=True)
class Search:
    """What a worker does: see `siamese_sat.scaleout.pool.Work`.

    Attributes:
        method: prepared.
        thresholds: least score by class.
        nms_iou: see `suppress`.
    """

    method: SearchMethod
    thresholds: Mapping[str, float]
    nms_iou: float

    def __call__(self, item: SceneItem) -> Candidates:
        """A whole scene's places, suppressed; or those of a part, which only all parts together can be."""
        if item.part[1] == 1:
            return self.settle(Candidates.join(list(self.method.candidates(item.scene, self.asked))))
        assert isinstance(self.method, Divisible)
        return Candidates.join(list(self.method.some(item.scene, self.asked, item.part)))

    def gather(self, parts: Sequence[Candidates]) -> Candidates:
        """A scene's places from what all its items gave."""
        if len(parts) == 1:
            return parts[0]
        assert isinstance(self.method, Divisible)
        return self.settle(self.method.whole(Candidates.join(parts).told, self.asked))

    @property
    def asked(self) -> dict[str, float]:
        """Least score by class of what the method is to give: what puts boxes right may be below the threshold.

        Where candidates are re-ranked, a higher threshold is no cheaper: those below it speak too.
        """
        if vote_iou_of(self.method) <= 0:
            return self.kept
        # What is only kept for its say is not worth the places that would put its box right.
        return {name: min(heard(least), self.kept[name]) for name, least in self.thresholds.items()}

    @property
    def kept(self) -> dict[str, float]:
        """Least score by class of what is kept of a scene: what re-ranks the others may be below the threshold."""
        most = FLOOR if rerank_of(self.method) > 0 else math.inf
        return {name: min(least, most) for name, least in self.thresholds.items()}

    def settle(self, found: Candidates) -> Candidates:
        """A scene's places, suppressed, put right, and those that are kept until all scenes are searched."""
        return self._reaching(suppress(found.told, self.nms_iou, vote_iou_of(self.method)), self.kept)

    def reported(self, found: Candidates) -> Candidates:
        """Of a scene's places those that reach their class's threshold, by the scores that they have in the end."""
        return self._reaching(found, self.thresholds)

    def _reaching(self, found: Candidates, thresholds: Mapping[str, float]) -> Candidates:
        least = np.array([thresholds[name] for name in self.method.classes])
        return found.at(found.scores >= (least[found.classes] if len(found.classes) else 0))


@dataclass(frozen=True)
class SceneItem:
    """A scene, or a part of its tiles, for one worker."""

    scene: Scene
    part: Part = (0, 1)

    @property
    def path(self) -> str:
        """Of the scene."""
        return self.scene.path


def search_scenes(
    scenes: Mapping[str, Scene],
    method: SearchMethod,
    thresholds: Mapping[str, float],
    nms_iou: float,
    workers: Workers | None = None,
    parts: Parts | None = None,
) -> Found:
    """Searches scene by scene, so that nothing of one suppresses anything of another; scores are settled by all.

    Where the method's candidates are re-ranked, a score depends on what all scenes that could be searched gave.

    Args:
        scenes: by the name that their detections carry.
        method: prepared.
        thresholds: least score by class.
        nms_iou: see `suppress`.
        workers: that share the scenes; None searches here. The detections are the same.
        parts: where scenes are kept as they are done, and from where those are taken that were; None for neither.

    Returns:
        What was found; a scene that cannot be read is reported there and the others are searched.
    """
    gathered = Gathered(rerank_of(method), sizes_of(method))
    failed: dict[str, str] = {}
    compared = dict.fromkeys(method.classes, 0)
    started = time.perf_counter()
    taken = parts.taken(scenes) if parts is not None else {}
    left = {name: scene for name, scene in scenes.items() if name not in taken}
    with progress() as bar:
        task = bar.add_task("Searching", total=sum(s.megapixels for s in left.values()), unit="Mpx")

        def advance(megapixels: float) -> None:
            bar.advance(task, megapixels)

        work = Search(method, thresholds, nms_iou)
        found = _here(left, work, advance) if workers is None else _shared(left, work, workers, advance)
        for name, candidates in itertools.chain(taken.items(), found):
            scene = scenes[name]
            if isinstance(candidates, InputError):
                failed[scene.path] = str(candidates)
                continue
            if parts is not None and name not in taken:
                parts.keep(name, candidates)
            gathered.add(name, candidates, scene.megapixels * 1e6)
            for class_name, count in method.windows(scene).items():
                compared[class_name] += count
    # In the order of the scenes, whichever was done first.
    concluded = {name: work.reported(places) for name, places in gathered.conclude(list(scenes)).items()}
    rows = [to_frame(places, method.classes, name, scenes[name].aoi) for name, places in concluded.items()]
    in_order = {s.path: failed[s.path] for s in scenes.values() if s.path in failed}
    return Found(best_first(rows), in_order, compared, time.perf_counter() - started, len(taken))


Advance = Callable[[float], None]


def _here(scenes: Mapping[str, Scene], work: Search, advance: Advance) -> Iterator[tuple[str, Candidates | InputError]]:
    for name, found in _searched(scenes, work.method, work.asked):
        yield name, found if isinstance(found, InputError) else work.settle(found)
        advance(scenes[name].megapixels)


def _searched(
    scenes: Mapping[str, Scene], method: SearchMethod, thresholds: Mapping[str, float]
) -> Iterator[tuple[str, Candidates | InputError]]:
    if isinstance(method, ManyScenes):
        yield from method.candidates_of(scenes, thresholds)
        return
    for name, scene in scenes.items():
        try:
            found = Candidates.join(list(method.candidates(scene, thresholds)))
        except InputError as error:
            yield name, error
        else:
            yield name, found


def _shared(
    scenes: Mapping[str, Scene], work: Search, workers: Workers, advance: Advance
) -> Iterator[tuple[str, Candidates | InputError]]:
    items: list[SceneItem] = []
    names: list[str] = []
    for name, scene in scenes.items():
        parts = max(1, math.ceil(scene.megapixels / workers.split_mpx)) if isinstance(work.method, Divisible) else 1
        items += [SceneItem(scene, (number, parts)) for number in range(parts)]
        names += [name] * parts
    held: dict[str, dict[int, Candidates | InputError]] = {}
    for number, result in workers.pool.run(work, items):
        item, name = items[number], names[number]
        advance(item.scene.megapixels / item.part[1])
        held.setdefault(name, {})[item.part[0]] = result
        if len(held[name]) < item.part[1]:
            continue
        got = [found for _, found in sorted(held.pop(name).items(), key=lambda one: one[0])]
        good = [found for found in got if not isinstance(found, InputError)]
        yield name, work.gather(good) if len(good) == len(got) else next(e for e in got if isinstance(e, InputError))
