"""Query expansion: the surest hits of a search join the exemplars, and the scenes are searched again.

Chum et al. 2007, "Total Recall: Automatic Query Expansion with a Generative Feature Model for Object Retrieval". More
exemplars say better what they have in common; a wrong one among them says something else, so few and sure ones join.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from siamese_sat.data.scene import PixelBox, Scene
from siamese_sat.errors import InputError
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.index.entry import scene_path
from siamese_sat.search.method import SearchMethod
from siamese_sat.search.run import Workers, search_scenes

log = logging.getLogger(__name__)

# A hit that overlaps an exemplar by more shows the same thing once more.
SAME = 0.3


def expand(
    method: SearchMethod,
    prepare: Callable[[Sequence[Exemplar]], None],
    exemplars: Sequence[Exemplar],
    scenes: Mapping[str, Scene],
    nms_iou: float,
    workers: Workers | None = None,
    *,
    rounds: int = 0,
    hits: int = 10,
    least: float = 0.6,
) -> list[Exemplar]:
    """Prepares a method again with the surest hits of what it finds, ``rounds`` times; each costs a whole search.

    What the user gave stays. Scores of the last search are calibrated on all exemplars, those that joined too: they
    resemble each other because they were chosen so, which makes scores read a little low. A chip image does not say
    where it was cut: one from the searched scenes finds itself as its surest hit and joins once more.

    Args:
        method: prepared.
        prepare: prepares it with exemplars.
        exemplars: that it was prepared with.
        scenes: to search, by name.
        nms_iou: see `suppress`.
        workers: see `search_scenes`.
        rounds: 0 does nothing.
        hits: of each class that join the exemplars, at most.
        least: score of a hit that joins, 0..1.

    Returns:
        The exemplars that it is prepared with now.

    Raises:
        InputError: a setting is out of its range, or there is nothing to add to.
    """
    if rounds < 0 or hits < 1 or not 0 <= least <= 1:
        raise InputError("search.expansion: rounds must be 0 or more, hits 1 or more, least between 0 and 1.")
    if rounds and not exemplars:
        raise InputError("search.expansion adds to exemplars; give some, or set search.expansion.rounds=0.")
    now = list(exemplars)
    for _ in range(rounds):
        found = search_scenes(scenes, method, dict.fromkeys(method.classes, least), nms_iou, workers).detections
        # Reported boxes are a little wider than the exemplars' own; they would grow from round to round.
        wider = float(getattr(method, "box_scale", 1.0))
        joining = surest(found, scenes, exemplars, hits, wider)
        log.info("Query expansion: %d sure hit(s) join %d exemplar(s).", len(joining), len(exemplars))
        if not joining:
            break
        now = [*exemplars, *joining]
        prepare(now)
    return now


def surest(
    found: pd.DataFrame, scenes: Mapping[str, Scene], exemplars: Sequence[Exemplar], hits: int, wider: float = 1.0
) -> list[Exemplar]:
    """The best detections of each class that show no exemplar once more.

    Args:
        found: columns as in detections.csv, best first.
        scenes: by file name.
        exemplars: known already.
        hits: of each class, at most.
        wider: by what factor detections are larger than what they show.
    """
    joining: list[Exemplar] = []
    for name, rows in found.groupby("class_name", sort=False):
        taken = 0
        for row in rows.itertuples(index=False):
            scene = scenes[str(row.filename)]
            reported = (row.x_min, row.y_min, row.x_max, row.y_max)
            if Exemplar(str(name), scene, reported).cut:  # type: ignore[arg-type]
                continue  # by the scene's border: a part of a thing would join
            box = _shrunk(reported, wider)  # type: ignore[arg-type]
            here = scene_path(scene.path)
            known = [e.box for e in exemplars if e.class_name == name and scene_path(e.scene.path) == here]
            if known and float(box_iou(torch.tensor([box]), torch.tensor(known)).max()) > SAME:
                continue
            joining.append(Exemplar(str(name), scene, box))
            taken += 1
            if taken == hits:
                break
    return joining


def _shrunk(box: tuple[float, float, float, float], by: float) -> PixelBox:
    corners = np.asarray(box, dtype=float)
    middle, half = (corners[:2] + corners[2:]) / 2, (corners[2:] - corners[:2]) / 2 / max(by, math.ulp(1.0))
    x0, y0, x1, y1 = np.concatenate([middle - half, middle + half]).tolist()
    return x0, y0, x1, y1
