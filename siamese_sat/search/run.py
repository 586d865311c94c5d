"""Scene after scene through one method."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.progress import progress
from siamese_sat.search.detect import Candidates, best_first, suppress, to_frame
from siamese_sat.search.method import ManyScenes, SearchMethod


@dataclass(frozen=True)
class Found:
    """What a search of several scenes gave.

    Attributes:
        detections: columns as in detections.csv, best first.
        failed: path of a scene that could not be searched -> the reason.
        compared: class -> how many places were compared.
        seconds: that it took.
    """

    detections: pd.DataFrame
    failed: dict[str, str]
    compared: dict[str, int]
    seconds: float


def search_scenes(
    scenes: Mapping[str, Scene], method: SearchMethod, thresholds: Mapping[str, float], nms_iou: float
) -> Found:
    """Searches scene by scene, so that nothing of one suppresses anything of another.

    Args:
        scenes: by the name that their detections carry.
        method: prepared.
        thresholds: least score by class.
        nms_iou: see `suppress`.

    Returns:
        What was found; a scene that cannot be read is reported there and the others are searched.
    """
    parts: list[pd.DataFrame] = []
    failed: dict[str, str] = {}
    compared = dict.fromkeys(method.classes, 0)
    started = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("Searching", total=sum(s.megapixels for s in scenes.values()), unit="Mpx")
        for name, candidates in _searched(scenes, method, thresholds):
            scene = scenes[name]
            if isinstance(candidates, InputError):
                failed[scene.path] = str(candidates)
                continue
            parts.append(to_frame(suppress(candidates, nms_iou), method.classes, name, scene.aoi))
            for class_name, count in method.windows(scene).items():
                compared[class_name] += count
            bar.advance(task, scene.megapixels)
    return Found(best_first(parts), failed, compared, time.perf_counter() - started)


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
