"""From a prepared way of searching to what is reported: detections, their evaluation, their files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.evaluate import Evaluation
from siamese_sat.progress import console
from siamese_sat.question import Asked
from siamese_sat.report.destination import named
from siamese_sat.report.ranking import ranking_sheet
from siamese_sat.report.render import rgb_bands
from siamese_sat.report.results import Results, write_results
from siamese_sat.report.table import class_table
from siamese_sat.search.detect import best_first, check_threshold
from siamese_sat.search.method import SearchMethod
from siamese_sat.search.run import Workers, search_scenes
from siamese_sat.truth import evaluate_search, read_truth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        detections: rows as in detections.csv, best first.
        failed: scenes that could not be searched, with the reason.
        evaluation: against ``truth``, or None.
        folder: where the files are; a text where that is ``s3://``.
        files: what was written, in the same way.
    """

    detections: pd.DataFrame
    failed: Mapping[str, str]
    evaluation: Evaluation | None
    folder: Path | str
    files: Sequence[Path | str] = field(default_factory=list)


def nothing_found(folder: Path, failed: Mapping[str, str] | None = None, files: Sequence[Path] = ()) -> SearchResult:
    """The result of a command that searched nothing."""
    return SearchResult(best_first([]), failed or {}, None, folder, list(files))


def conclude(
    cfg: DictConfig,
    folder: Path,
    method: SearchMethod,
    scenes: Mapping[str, Scene],
    failed: Mapping[str, str],
    bands: Sequence[str],
    known: Mapping[str, float] | None = None,
    workers: Workers | None = None,
    asked: Asked | None = None,
) -> SearchResult:
    """Searches the scenes and writes what is found.

    Args:
        cfg: as ``conf/search.yaml`` composes it.
        folder: for the files.
        method: prepared.
        scenes: by the name that their detections carry.
        failed: scenes that have failed already, with the reason.
        bands: names of the scenes' bands, by which they are shown.
        known: a training's thresholds by class.
        workers: that share the scenes; None searches here.
        asked: so that an interrupted search goes on when it is started again; None for one that begins again.

    Raises:
        InputError: thresholds, truth or a file cannot be used.
    """
    thresholds = find_thresholds(cfg, known or {}, method.classes)
    output: dict[str, Any] = OmegaConf.to_container(cfg.output, resolve=True)  # type: ignore[assignment]
    best = output.pop("ranking", None)
    # Average precision is of the whole ranking, so with truth everything is scored; a lower score never
    # suppresses a higher one. What is reported is then the same but for places that are compared closely only where
    # much is asked for: template search finds a few more so, and hears them on boxes and on the others' scores.
    everything = cfg.truth is not None or best is not None
    least = dict.fromkeys(thresholds, 0.0) if everything else thresholds
    labels = read_truth(cfg, scenes, method.classes)  # before the long part: it may be unreadable
    if labels is None and (folder / "evaluation.csv").exists():
        log.warning("%s: evaluation.csv, its plots and its verdicts are of an earlier search.", folder)
    parts = asked.parts(cfg, scenes, least) if asked is not None else None
    found = search_scenes(scenes, method, least, cfg.search.nms_iou, workers, parts)
    ranked, failed = found.detections, {**failed, **found.failed}
    if best is not None:
        detections = ranked[ranked.groupby("class_name").cumcount() < best].reset_index(drop=True)
    else:
        wanted = np.array([thresholds[name] for name in ranked.class_name], dtype=float)
        detections = ranked[ranked.score.to_numpy(float) >= wanted].reset_index(drop=True)
    searched = {name: scene for name, scene in scenes.items() if scene.path not in failed}
    # Windows of two runs in the seconds of one would be no rate.
    seconds = found.seconds if not found.taken else 0.0
    console.print(class_table(detections, method.classes, len(searched), found.compared, seconds))
    truth = labels[labels.filename.isin(list(searched))].reset_index(drop=True) if labels is not None else None
    evaluation = evaluate_search(ranked, truth, searched, thresholds) if truth is not None else None
    rgb = rgb_bands(bands)
    results = Results(detections, searched, method.classes, truth, evaluation, ranked, rgb)
    files = write_results(results, folder, **output)
    if best is not None:
        sheet = ranking_sheet(detections, searched, folder / "ranking.png", method.classes, rgb)
        files += [sheet] if sheet is not None else []
    if parts is not None:
        parts.remove()
    called = [named(file, folder, str(cfg.paths.output_dir)) for file in files]
    for path, reason in failed.items():
        log.error("Not searched: %s (%s)", path, reason)
    log.info("%d detections in %d scene(s): %s", len(detections), len(searched), called[0])
    pages = [c for c in called if c.endswith((".html", ".gpkg", "ranking.png"))]
    if pages:
        log.info("Worth opening: %s", ", ".join(pages))
    return SearchResult(detections, failed, evaluation, folder, files)


def find_thresholds(cfg: DictConfig, known: Mapping[str, float], classes: Sequence[str]) -> dict[str, float]:
    """The least score of each class, as ``search.threshold`` says.

    Raises:
        InputError: it is none, or names a class that is not searched.
    """
    wanted = cfg.search.threshold
    if wanted == "per_class":
        strange = sorted(set(classes) - set(known))
        if strange:
            log.warning("search.threshold=per_class: there is none of %s, 0.3 is taken.", ", ".join(strange))
        return {c: known.get(c, 0.3) for c in classes}
    try:
        given = {str(k): float(v) for k, v in wanted.items()} if OmegaConf.is_dict(wanted) else float(wanted)
    except (TypeError, ValueError) as error:
        raise InputError(f"search.threshold={wanted} is no number, no {{class: number}} and not per_class.") from error
    return check_threshold(given, classes)
