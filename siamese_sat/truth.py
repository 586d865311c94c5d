"""What a search is held against: labels of the scenes that it searched."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from siamese_sat.data.annotation import LabelReader
from siamese_sat.data.scene import Scene
from siamese_sat.evaluate import Evaluation, evaluate
from siamese_sat.progress import console
from siamese_sat.report.evaluated import SHOWN
from siamese_sat.report.table import frame_table

log = logging.getLogger(__name__)


def read_truth(cfg: DictConfig, scenes: Mapping[str, Scene], classes: Sequence[str]) -> pd.DataFrame | None:
    """The labels of the classes that were searched for: others are nobody's misses.

    Args:
        cfg: as ``conf/search.yaml`` composes it; looked at are ``truth`` and how ``exemplars`` names classes.
        scenes: by the name that their detections carry.
        classes: that are searched for.

    Returns:
        Boxes with class_name and filename; None where no truth is given.

    Raises:
        InputError: a label file is missing, damaged, or of no known kind.
    """
    if cfg.truth is None:
        return None
    # Classes are named for truth as they are for exemplars.
    shown = cfg.exemplars
    aliases = dict(shown.aliases or {})
    reader = LabelReader(aliases, shown.class_field, shown.default_class, setting="truth", group="exemplars")
    truth = reader.read(list(scenes.values()), [*cfg.truth] if OmegaConf.is_list(cfg.truth) else cfg.truth)
    names = {scene.path: name for name, scene in scenes.items()}
    truth["filename"] = [names[path] for path in truth.pop("scene")]
    wanted = truth[truth.class_name.isin(classes)].reset_index(drop=True)
    if wanted.empty:
        others = sorted(set(truth.class_name))
        remedy = "exemplars.aliases renames classes" if others else "label files carry their scenes' names"
        log.warning(
            "truth=%s has no label of %s in the searched scenes; it has %s: %s.",
            cfg.truth, ", ".join(classes), ", ".join(others) or "none at all", remedy,
        )  # fmt: skip
    return wanted


def evaluate_search(
    ranked: pd.DataFrame, truth: pd.DataFrame, searched: Mapping[str, Scene], thresholds: Mapping[str, float]
) -> Evaluation:
    """The evaluation of a search, which is shown on the terminal and noted in the log.

    Args:
        ranked: detections at any score.
        truth: boxes with class_name and filename, of the searched scenes.
        searched: by file name.
        thresholds: in use, by class.

    Raises:
        InputError: faster-coco-eval is not installed.
    """
    sizes = {name: (s.aoi[2] - s.aoi[0], s.aoi[3] - s.aoi[1]) for name, s in searched.items()}
    evaluation = evaluate(ranked, truth, sizes, thresholds)
    console.print(frame_table(evaluation.table()[list(SHOWN)].rename(columns=SHOWN), "Evaluation"))
    errors = [f"{name} {entry.calibration_error:.2f}" for name, entry in evaluation.per_class.items() if entry.objects]
    if errors:
        log.info("Calibration error of the scores: %s.", ", ".join(errors))
    return evaluation
