"""The parts of the page that hold detections against truth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from siamese_sat.data.scene import Scene
from siamese_sat.evaluate import Evaluation
from siamese_sat.evaluation.reliability import FLOOR
from siamese_sat.evaluation.verdict import Verdict
from siamese_sat.report.page import Section
from siamese_sat.report.quality import FEW, precision_recall, reliability_diagram
from siamese_sat.report.verdict import verdict_sheet

# Of each row of the evaluation a reader wants these, under these headings; the file has all.
SHOWN = {
    "objects": "objects",
    "ap50": "AP50",
    "ap": "AP50:95",
    "ap_centre": "centre AP",
    "f1": "F1",
    "best_f1": "best F1",
    "calibration_error": "ECE",
}
ECE = (
    f"ECE, the expected calibration error, is how far scores lie from the share that is right, on average over the "
    f"detections that score {FLOOR} or more; 0 is best. Lines below the diagonal of the reliability diagram promise "
    f"too much, hollow marks stand for fewer than {FEW} detections."
)
VERDICT = (
    "Of each class the surest detections that are right, the objects that were missed (first those that no score would "
    "have shown, the largest of them first), and the surest detections that are false. Under a chip: score, and IoU of "
    "detection and truth."
)


def figures(evaluation: Evaluation, folder: Path) -> Section:
    """The table of the evaluation, precision_recall.png and reliability.png.

    Raises:
        InputError: a picture cannot be written.
    """
    entries = {name: entry for name, entry in evaluation.per_class.items() if entry.objects}
    pictures = [
        precision_recall(
            {name: (entry.curve.recall, entry.curve.precision) for name, entry in entries.items()},
            folder / "precision_recall.png",
            {name: f"{name}, AP {entry.ap50:.2f}" for name, entry in entries.items()},
        ),
        reliability_diagram(
            {name: entry.reliability for name, entry in entries.items()},
            folder / "reliability.png",
            {name: f"{name}, ECE {entry.calibration_error:.2f}" for name, entry in entries.items()},
        ),
    ]
    table = evaluation.table()[list(SHOWN)].rename(columns=SHOWN).reset_index()
    return Section("Evaluation", ECE, table, pictures)


def verdict_sheets(
    verdicts: Mapping[str, Verdict],
    thresholds: Mapping[str, float],
    scenes: Mapping[str, Scene],
    folder: Path,
    colours: Mapping[str, str],
    rgb: Sequence[int],
) -> Section:
    """A picture per class, ``verdict_<class>.png``; see `verdict_sheet`.

    Raises:
        InputError: a scene cannot be read, or a picture cannot be written.
    """
    files: list[Path] = []
    for name, verdict in verdicts.items():
        stem = re.sub(r"[^\w.-]", "_", f"verdict_{name}")
        if folder / f"{stem}.png" in files:  # "a b" and "a/b" are two classes
            stem = f"{stem}_{len(files)}"
        path = folder / f"{stem}.png"
        files.append(verdict_sheet(name, verdict, thresholds[name], scenes, path, colours[name], rgb))
    return Section("Found, missed and false", VERDICT, None, files)
