"""How well search finds things that no training showed it: AP over six classes of real imagery.

Exemplars are drawn from the training images, seeded draws of 1, 3 and 5; the test images are searched. All draws of a
class are searched in one pass, each as a class of its own. Writes accuracy.md, accuracy.csv and accuracy.png. The
same command, interrupted, goes on with the scenes that it had not searched.

    python benchmarks/accuracy.py --data <folder> --weights <file> [--quick] [--methods template window]
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import imagery
import numpy as np
import pandas as pd
import torch
from bench import markdown
from imagery import CLASSES, CONF, arguments, draws, load, prepared, settings_of
from omegaconf import OmegaConf

from siamese_sat.data.scene import Scene
from siamese_sat.evaluate import ClassEvaluation, evaluate
from siamese_sat.question import fingerprint, program
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.expansion import expand
from siamese_sat.search.index.entry import signature, to_json
from siamese_sat.search.method import SearchMethod
from siamese_sat.search.parts import Parts
from siamese_sat.search.run import search_scenes
from siamese_sat.search.unlike import Unlike

# Of search.expansion, as search.py has them.
EXPANSION = OmegaConf.load(CONF.parent / "default.yaml").expansion
# F1 at the threshold in use should be at least this part of the best.
WITHIN = 0.85


def run(
    args: argparse.Namespace, name: str, method_name: str, settings: Mapping[str, object]
) -> tuple[list[dict[str, object]], Parts]:
    """All draws of one class by one method: a row for each, and what is kept until they are written."""
    train, train_labels, test, truth = load(args.data, name, args.quick, args.bands)
    if args.scenes is not None and args.scenes < len(test):
        test = [test[(2 * i + 1) * len(test) // (2 * args.scenes)] for i in range(args.scenes)]
        truth = truth[truth.scene.isin([s.path for s in test])].reset_index(drop=True)
    exemplars = draws(args, train_labels, train)
    method, prepare, started = prepared(args, settings, test, exemplars)
    scenes = {s.path: s for s in test}
    exemplars = expand(method, prepare, exemplars, scenes, args.nms_iou, **{**EXPANSION, "rounds": args.expansion})
    shown: list[Exemplar] = exemplars
    asked = method
    if args.mistakes:
        negatives = _mistakes(args, method, scenes, truth)
        asked = Unlike(method, negatives)
        prepare(exemplars, asked)
        shown = [*exemplars, *negatives]
    parts = Parts(args.out / "searched", _question(args, name, settings, method, shown, test))
    found = search_scenes(scenes, asked, dict.fromkeys(asked.classes, 0.0), args.nms_iou, parts=parts)
    seconds = time.perf_counter() - started if found.taken == 0 else float("nan")
    truth = truth.rename(columns={"scene": "filename"})
    sizes = {s.path: (s.aoi[2] - s.aoi[0], s.aoi[3] - s.aoi[1]) for s in test}
    rows: list[dict[str, object]] = []
    for drawn in asked.classes:
        mine = found.detections[found.detections.class_name == drawn].assign(class_name=name)
        entry = evaluate(mine, truth.assign(class_name=name), sizes, args.threshold).per_class[name]
        count, number = drawn.split(" exemplars, draw ")
        rows.append(
            {
                "class": name, "method": method_name, "exemplars": int(count), "draw": int(number),
                "objects": entry.objects, "ap50": 100 * entry.ap50, "ap": 100 * entry.ap,
                "centre_ap": 100 * entry.ap_centre, "f1": entry.f1, "best_f1": entry.best_f1,
                "best_threshold": entry.best_threshold, **_band(entry), "recall_at_1_fp": entry.recall_at_1_fp,
                "calibration_error": entry.calibration_error, "seconds": seconds,
                **_known(method, drawn),
            }
        )  # fmt: skip
    return rows, parts


def _mistakes(
    args: argparse.Namespace, method: SearchMethod, scenes: Mapping[str, Scene], truth: pd.DataFrame
) -> list[Exemplar]:
    """Each draw's surest detections that touch no labelled thing, as a user marks them."""
    found = search_scenes(scenes, method, dict.fromkeys(method.classes, args.threshold), args.nms_iou).detections
    boxes = {path: part[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float) for path, part in truth.groupby("scene")}
    none = np.empty((0, 4))
    marked: list[Exemplar] = []
    for drawn, rows in found.groupby("class_name", sort=False):
        mine: list[Exemplar] = []
        for row in rows.itertuples(index=False):
            x_min, y_min, x_max, y_max = (float(v) for v in (row.x_min, row.y_min, row.x_max, row.y_max))
            there = boxes.get(str(row.filename), none)
            touched = (there[:, :2] < [x_max, y_max]).all(axis=1) & (there[:, 2:] > [x_min, y_min]).all(axis=1)
            if not touched.any() and len(mine) < args.mistakes:
                mine.append(Exemplar(str(drawn), scenes[str(row.filename)], (x_min, y_min, x_max, y_max)))
        marked += mine
    return marked


def _question(
    args: argparse.Namespace,
    name: str,
    settings: Mapping[str, object],
    method: SearchMethod,
    exemplars: Sequence[Exemplar],
    test: Sequence[Scene],
) -> str:
    """All that decides what is found: what was kept of another question does not answer this one."""
    engine = getattr(method, "engine", None)
    assert isinstance(engine, Engine)
    files = [args.weights, args.ckpt, Path(__file__), Path(imagery.__file__)]
    return fingerprint(
        [
            program(), [hashlib.sha256(f.read_bytes()).hexdigest() if f is not None else None for f in files],
            engine.device.type, str(engine.dtype), getattr(engine.embedder, "runtime", "eager"),
            name, dict(settings), args.nms_iou,
            [(e.class_name, e.box, to_json(e.scene), signature(e.scene.path)) for e in exemplars],
            [(to_json(s), signature(s.path)) for s in test],
        ]
    )  # fmt: skip


def _band(entry: ClassEvaluation) -> dict[str, float]:
    """Between which thresholds F1 is within 15 % of the best."""
    kept = np.arange(1, len(entry.curve.score) + 1)
    f1 = 2 * entry.curve.precision * kept / (kept + entry.objects)
    good = entry.curve.score[f1 >= WITHIN * entry.best_f1]
    return {"good_from": float(good.min()), "good_to": float(good.max())} if len(good) else {}


def _known(method: object, drawn: str) -> dict[str, float]:
    """What a template knew of its scores before it searched."""
    found = {}
    for template in getattr(method, "templates", []):
        if template.name == drawn:
            found["left_out"] = float(np.median(template.left_out)) if len(template.left_out) else float("nan")
            found["raw_threshold"] = template.curve.threshold
            for q in (0.5, 0.9, 0.98, 0.985, 0.99, 0.993, 0.995, 0.998, 0.999):
                found[f"background_{q}"] = float(np.quantile(template.background, q))
    return found


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over draws; the last row of each method is the mean over classes."""
    keys = ["method", "exemplars", "class"]
    grouped = rows.groupby(keys, sort=False)[["ap50", "centre_ap", "ap", "f1", "best_f1", "best_threshold"]]
    mean, spread = grouped.mean(), grouped.std(ddof=0)
    lines = []
    for (method, count), part in mean.groupby(level=[0, 1], sort=False):
        for (_, _, name), row in part.iterrows():
            s = spread.loc[(method, count, name)]
            close = rows[(rows.method == method) & (rows.exemplars == count) & (rows["class"] == name)]
            within = (close.f1 >= WITHIN * close.best_f1).sum()
            lines.append(
                [method, count, name, f"{row.ap50:.1f} ± {s.ap50:.1f}", f"{row.centre_ap:.1f} ± {s.centre_ap:.1f}",
                 f"{row.ap:.1f}", f"{row.f1:.2f}", f"{row.best_f1:.2f}", f"{row.best_threshold:.2f}",
                 f"{within}/{len(close)}"]
            )  # fmt: skip
        m = part.mean()
        lines.append([method, count, "mean", f"{m.ap50:.1f}", f"{m.centre_ap:.1f}", f"{m.ap:.1f}", f"{m.f1:.2f}",
                      f"{m.best_f1:.2f}", "", ""])  # fmt: skip
    columns = [
        "method",
        "exemplars",
        "class",
        "AP50",
        "centre AP",
        "AP50:95",
        "F1",
        "best F1",
        "best at",
        "F1 within 15 %",
    ]
    return pd.DataFrame(lines, columns=columns)


def picture(rows: pd.DataFrame, path: Path) -> None:
    """AP50 and centre AP of every draw, class by class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(rows["class"]))
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
    most = rows[rows.exemplars == rows.exemplars.max()]
    for axis, column, title in zip(axes, ("ap50", "centre_ap"), ("AP at IoU 0.5", "centre AP"), strict=True):
        for i, (method, part) in enumerate(most.groupby("method", sort=False)):
            place = np.array([names.index(n) for n in part["class"]]) + (i - 0.5) * 0.2
            axis.scatter(place, part[column], s=18, alpha=0.7, color=colours[i % 4], label=str(method))
        axis.set_xticks(range(len(names)), names, rotation=30)
        axis.set_title(f"{title}, {rows.exemplars.max()} exemplars, a dot a draw", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylim(0, 100)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs the table."""
    parser = arguments(str(__doc__), "outputs/benchmarks/accuracy")
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), choices=(*CLASSES, "vehicles"))
    parser.add_argument("--methods", nargs="+", default=["template"])
    parser.add_argument("--exemplars", nargs="+", type=int, default=[1, 3, 5])
    parser.add_argument("--quick", action="store_true", help="crops of some test scenes: for comparing settings")
    parser.add_argument(
        "--scenes",
        type=int,
        choices=range(1, 1000),
        metavar="N",
        help="so many of the test scenes only, evenly from all",
    )
    parser.add_argument(
        "--bands",
        nargs="+",
        type=int,
        default=[1, 2, 3, 4],
        help="of boats and vehicles, in B, G, R, NIR order; 1 2 3: without near infrared",
    )
    parser.add_argument(
        "--expansion",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="in which the surest hits in the test scenes join the exemplars, as search.expansion has it",
    )
    parser.add_argument(
        "--mistakes",
        type=int,
        default=0,
        metavar="N",
        help="mark each draw's N surest mistakes, as feedback.negatives does, and search again",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("siamese_sat").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    kept: list[Parts] = []
    for method in args.methods:
        settings = settings_of(method, args.set)
        for name in args.classes:
            found, parts = run(args, name, method, settings)
            rows += found
            kept.append(parts)
            shown = summary(pd.DataFrame([r for r in rows if r["class"] == name and r["method"] == method]))
            print(shown[shown["class"] == name].to_string(index=False, header=name == args.classes[0]), flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(args.out / "accuracy.csv", index=False)
    text = markdown(summary(frame).set_index("method"))
    head = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
    searched = "whole test sets" if args.scenes is None else f"{args.scenes} test scenes"
    head += f"{'crops' if args.quick else searched}; {json.dumps(args.set)}"
    head += f"; {args.expansion} rounds of expansion" if args.expansion else ""
    head += f"; {args.mistakes} mistakes marked" if args.mistakes else ""
    (args.out / "accuracy.md").write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    picture(frame, args.out / "accuracy.png")
    for parts in kept:
        parts.remove()
    print(text)


if __name__ == "__main__":
    main()
