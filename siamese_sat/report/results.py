"""All the files that a search leaves, each switched by config."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.evaluate import Evaluation
from siamese_sat.evaluation.tables import DETECTIONS
from siamese_sat.evaluation.verdict import judge
from siamese_sat.report.colour import class_colours
from siamese_sat.report.evaluated import figures, verdict_sheets
from siamese_sat.report.page import Section, write_page
from siamese_sat.report.picture import overlay
from siamese_sat.report.table import with_map_coordinates, write_coco, write_csv, write_vector

log = logging.getLogger(__name__)

SUFFIXES = {"gpkg", "geojson", "parquet"}


@dataclass(frozen=True)
class Results:
    """What a search found, and what is known of it.

    Attributes:
        detections: best first, columns as in detections.csv.
        scenes: the searched ones by the name in ``filename``.
        classes: names of what was searched for.
        truth: boxes with class_name and filename, or None.
        evaluation: of the detections against the truth, or None.
        ranked: with the detections that score too little to be reported; where there is truth.
        rgb: which of the scenes' bands become red, green and blue in pictures, counted from 0.
    """

    detections: pd.DataFrame
    scenes: Mapping[str, Scene]
    classes: Sequence[str]
    truth: pd.DataFrame | None = None
    evaluation: Evaluation | None = None
    ranked: pd.DataFrame | None = None
    rgb: Sequence[int] = (2, 1, 0)


def write_results(
    results: Results,
    folder: Path,
    *,
    csv: Literal["default", "challenge"] = "default",
    vector: Sequence[str] = (),
    coco: bool = True,
    overlays: int = 20,
    verdicts: int = 8,
    page: bool = True,
) -> list[Path]:
    """Writes detections.csv and, as asked, everything beside it.

    Args:
        results: what to write.
        folder: where.
        csv: with a header and map columns, or the original challenge's seven columns.
        vector: of gpkg, geojson, parquet; written where a scene is georeferenced.
        coco: COCO results and the images that its numbers mean.
        overlays: pictures of so many scenes, those with the surest detections first.
        verdicts: where there is truth, a picture per class of so many things found, missed and falsely found.
        page: everything on one HTML page.

    Returns:
        The files, detections.csv first.

    Raises:
        InputError: an unknown format, or a file cannot be written.
    """
    strange = sorted(set(vector) - SUFFIXES)
    if strange:
        raise InputError(f"output.vector names {strange[0]!r}; known are {', '.join(sorted(SUFFIXES))}.")
    found, scenes = results.detections, results.scenes
    files = [write_csv(with_map_coordinates(found, scenes), folder / "detections.csv", csv)]
    if any(s.georeferenced for s in scenes.values()):
        written = [write_vector(found, scenes, folder / f"detections.{suffix}") for suffix in vector]
        files.extend(path for path in written if path is not None)
    if coco:
        categories = {name: i for i, name in enumerate(results.classes, start=1)}
        files.append(write_coco(found, scenes, folder / "detections.coco.json", category_ids=categories))
    pictures = _overlays(results, folder / "overlays", overlays)
    files.extend(pictures)
    sections = []
    if results.evaluation is not None:
        results.evaluation.table().to_csv(folder / "evaluation.csv")
        files.append(folder / "evaluation.csv")
        sections.append(figures(results.evaluation, folder))
        if verdicts and results.ranked is not None and results.truth is not None:
            colours = class_colours(results.classes)
            # By these numbers feedback calls them.
            ranked = results.ranked.merge(found[DETECTIONS].reset_index(names="row"), on=DETECTIONS, how="left")
            judged = judge(ranked, results.truth, results.evaluation.thresholds, verdicts)
            sections.append(verdict_sheets(judged, results.evaluation.thresholds, scenes, folder, colours, results.rgb))
        files.extend(path for section in sections for path in section.images)
    sections.append(Section("Detections", _summary(results), found.head(200)))
    if page:
        sections.append(Section("Scenes", "White, dashed: truth." if results.truth is not None else "", None, pictures))
        files.append(write_page(folder / "report.html", "Search results", sections))
    return files


def _overlays(results: Results, folder: Path, most: int) -> list[Path]:
    scenes = list(dict.fromkeys([*results.detections.filename, *results.scenes]))[: max(0, most)]
    flat = {name: name.replace("/", "_") for name in results.scenes}
    stems = Counter(file.rsplit(".", 1)[0] for file in flat.values())
    files = []
    for name in scenes:
        mine = results.detections[results.detections.filename == name]
        truth = results.truth[results.truth.filename == name] if results.truth is not None else None
        stem = flat[name].rsplit(".", 1)[0]
        # a.tif and a.jp2 are two scenes.
        path = folder / f"{stem if stems[stem] == 1 else flat[name]}.png"
        files.append(overlay(results.scenes[name], mine, path, truth, rgb=results.rgb, classes=results.classes))
    if len(scenes) < len(results.scenes):
        log.info("Overlays of %d of %d scenes; output.overlays=<number> for more.", len(scenes), len(results.scenes))
    return files


def _summary(results: Results) -> str:
    counts = results.detections.class_name.value_counts()
    each = ", ".join(f"{counts.get(name, 0)} {name}" for name in results.classes)
    return f"{each} in {len(results.scenes)} scene(s). The table shows the first 200."
