"""Detections in the COCO results format, and the data set that gives their ids a meaning."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.report.files import replacing
from siamese_sat.report.place import PIXELS

log = logging.getLogger(__name__)


def write_coco(
    detections: pd.DataFrame,
    scenes: Mapping[str, Scene],
    path: str | Path,
    image_ids: Mapping[str, int] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> Path:
    """Writes COCO results (https://cocodataset.org/#format-results) that ``COCO.loadRes`` reads.

    Beside ``<stem>.json``, a list of ``image_id, category_id, bbox [x, y, width, height], score``, stands
    ``<stem>_images.json``: images, categories and no annotations, to be given to ``COCO()`` first.

    Args:
        detections: one row per box.
        scenes: the scene behind every ``filename``; all become images, in this order, those without a
            detection too.
        path: the results file.
        image_ids: ``filename`` to id, as in the truth file that the results are held against; otherwise from 1.
        category_ids: class name to id, likewise; otherwise the sorted names from 1.

    Raises:
        InputError: a detection names a scene that is not in ``scenes``, or a file cannot be written.
    """
    path = Path(path)
    strays = sorted(set(detections["filename"]) - set(scenes))
    if strays:
        raise InputError(f"{path}: detections name {strays[0]!r}, which is not among the scenes.")
    images = _numbered(scenes, image_ids, "scene")
    named = _numbered(sorted(set(detections["class_name"])), category_ids, "class")
    categories = {**(category_ids or {}), **named}
    boxes = detections[PIXELS].to_numpy(dtype=float)
    rows = zip(detections["filename"], detections["class_name"], boxes, detections["score"], strict=True)
    results = [
        {
            "image_id": images[filename],
            "category_id": categories[name],
            "bbox": [round(float(v), 3) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(float(score), 6),
        }
        for filename, name, (x0, y0, x1, y1), score in rows
    ]
    skeleton = {
        "info": {"description": "scenes searched by siamese_sat"},
        "images": [
            {"id": images[name], "file_name": name, "width": scene.width, "height": scene.height}
            for name, scene in scenes.items()
        ],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": [],
    }
    for target, content in ((path.with_name(f"{path.stem}_images.json"), skeleton), (path, results)):
        with replacing(target) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def _numbered(names: Iterable[str], given: Mapping[str, int] | None, what: str) -> dict[str, int]:
    """Ids as given; a name that was not given gets the next number that is free."""
    given = given or {}
    ids: dict[str, int] = {}
    free = max(given.values(), default=0) + 1
    for name in names:
        if name in given:
            ids[name] = int(given[name])
            continue
        if given:
            log.warning("The truth has no %s %r; it gets the id %d.", what, name, free)
        ids[name] = free
        free += 1
    return ids
