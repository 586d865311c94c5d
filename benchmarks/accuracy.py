"""How well search finds things that no training showed it: AP over six classes of real imagery.

Exemplars are drawn from the training images, seeded draws of 1, 3 and 5; the test images are searched. All draws of a
class are searched in one pass, each as a class of its own. Writes accuracy.md, accuracy.csv and accuracy.png.

    python benchmarks/accuracy.py --data <folder> --weights <file> [--quick] [--methods template window]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from siamese_sat.data.annotation import LabelReader, coco_scenes
from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.radiometry import band_names, estimate, for_imagenet_weights
from siamese_sat.data.scene import Scene, open_scene
from siamese_sat.device import pick_device, pick_precision
from siamese_sat.evaluate import ClassEvaluation, evaluate
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import TrainedModel, load_model
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import build_embedder
from siamese_sat.model.runtime import RUNTIMES
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar, draw_exemplars
from siamese_sat.search.method import SearchMethod
from siamese_sat.search.run import search_scenes

CONF = Path(__file__).resolve().parent.parent / "conf" / "search" / "method"
COCO = {
    "aircraft": "aircraft",
    "tanks": "storage_tanks",
    "ships": "ships",
    "pools": "swimming_pools",
    "turbines": "wind_turbines",
}
CLASSES = (*COCO, "boats")
# F1 at the threshold in use should be at least this part of the best.
WITHIN = 0.85
# --quick: so many test scenes, cut to so many pixels a side round the densest labels.
QUICK = {"aircraft": (6, 1280), "tanks": (5, 512), "ships": (24, 512), "pools": (30, 512), "turbines": (50, 300)}


def load(
    data: Path, name: str, quick: bool, bands: Sequence[int] = (1, 2, 3, 4)
) -> tuple[list[Scene], pd.DataFrame, list[Scene], pd.DataFrame]:
    """Training scenes and labels, test scenes and labels; ``bands`` of the scene with boats."""
    if name == "boats":
        scene = open_scene(data / "zurich_boats/zurich_14.tif", list(bands))
        middle = scene.height // 2
        halves = [scene.within([0, 0, scene.width, middle]), scene.within([0, middle, scene.width, scene.height])]
        return (
            [halves[0]], LabelReader().read([halves[0]], None), [halves[1]], LabelReader().read([halves[1]], None),
        )  # fmt: skip
    found: list[tuple[list[Scene], pd.DataFrame]] = []
    for part in ("train", "test"):
        file = data / COCO[name] / f"{part}.json"
        scenes = [open_scene(path, [3, 2, 1]) for path in coco_scenes(file)]
        labels = LabelReader().read(scenes, file)
        if quick and part == "test":
            count, side = QUICK[name]
            scenes = [s for s in scenes if (labels.scene == s.path).any()][:count]
            scenes = [s.within(_densest(labels[labels.scene == s.path], s, side)) for s in scenes]
            labels = LabelReader().read(scenes, file)
        found.append((scenes, labels))
    return (*found[0], *found[1])


def _densest(labels: pd.DataFrame, scene: Scene, side: int) -> list[int]:
    x, y = labels[["x_min", "x_max"]].mean(axis=1).to_numpy(), labels[["y_min", "y_max"]].mean(axis=1).to_numpy()
    near = (np.abs(x[:, None] - x) < side / 2) & (np.abs(y[:, None] - y) < side / 2)
    best = int(near.sum(1).argmax())
    left = int(np.clip(x[best] - side / 2, 0, max(0, scene.width - side)))
    top = int(np.clip(y[best] - side / 2, 0, max(0, scene.height - side)))
    return [left, top, left + side, top + side]


def draw(labels: pd.DataFrame, scenes: Sequence[Scene], count: int, seed: int, name: str) -> list[Exemplar]:
    """``count`` exemplars, a seeded draw among those that no border cuts, as search.py itself draws."""
    by_path = {s.path: s for s in scenes}
    boxes = labels[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float).tolist()
    every = [Exemplar(name, by_path[p], (b[0], b[1], b[2], b[3])) for p, b in zip(labels.scene, boxes, strict=True)]
    return draw_exemplars(every, count, np.random.default_rng(seed))


def draws(args: argparse.Namespace, labels: pd.DataFrame, scenes: Sequence[Scene]) -> list[Exemplar]:
    """All draws that are asked for, each as a class of its own."""
    return [
        e
        for count in args.exemplars
        for number in range(args.draws)
        for e in draw(labels, scenes, count, number, f"{count} exemplars, draw {number}")
    ]


def prepared(
    args: argparse.Namespace, settings: Mapping[str, object], test: Sequence[Scene], exemplars: Sequence[Exemplar]
) -> tuple[SearchMethod, float]:
    """A method by these settings, ready to search the scenes for the exemplars; and when that began, weights loaded."""
    device = pick_device(args.device)
    if args.ckpt is not None:
        model = load_model(args.ckpt)
    else:
        names = band_names(len(test[0].bands))
        embedder = build_embedder(names, variant="v1", weights=str(args.weights)).eval().requires_grad_(False)
        found = estimate(test[:: max(1, len(test) // 64)], max_blocks=4, quiet=True)
        radiometry = for_imagenet_weights(found, test[0].dtype)
        model = TrainedModel(embedder, radiometry, ChipSpec(), test[0].bands, (), Calibration())
    dtype = pick_precision(args.precision, device)
    deployed = DeployedEmbedder(model.embedder, device, dtype, args.runtime)
    engine = Engine(deployed, device, dtype)
    method: SearchMethod = get_class(str(settings["_target_"]))(
        **{k: v for k, v in settings.items() if k != "_target_"}
    )
    started = time.perf_counter()
    method.prepare(model, engine, exemplars, lambda scene: model.radiometry, test)
    return method, started


def run(
    args: argparse.Namespace, name: str, method_name: str, settings: Mapping[str, object]
) -> list[dict[str, object]]:
    """All draws of one class by one method: a row for each."""
    train, train_labels, test, truth = load(args.data, name, args.quick, args.boat_bands)
    if args.scenes is not None and args.scenes < len(test):
        test = [test[(2 * i + 1) * len(test) // (2 * args.scenes)] for i in range(args.scenes)]
        truth = truth[truth.scene.isin([s.path for s in test])].reset_index(drop=True)
    method, started = prepared(args, settings, test, draws(args, train_labels, train))
    scenes = {s.path: s for s in test}
    found = search_scenes(scenes, method, dict.fromkeys(method.classes, 0.0), args.nms_iou)
    seconds = time.perf_counter() - started
    truth = truth.rename(columns={"scene": "filename"})
    sizes = {s.path: (s.aoi[2] - s.aoi[0], s.aoi[3] - s.aoi[1]) for s in test}
    rows: list[dict[str, object]] = []
    for drawn in method.classes:
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
    return rows


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


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


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


def arguments(description: str, out: str) -> argparse.ArgumentParser:
    """Arguments that the benchmarks of what a search finds share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="ResNet50 v1 weights; layer1 and layer2 are enough for templates")
    parser.add_argument("--ckpt", type=Path, help="search with this training's backbone instead")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="settings of the method, name=value")
    parser.add_argument("--nms-iou", type=float, default=0.1)
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runtime", default="auto", choices=RUNTIMES)
    return parser


def settings_of(method: str, chosen: Sequence[str]) -> dict[str, object]:
    """The method's settings by default, but for those chosen, name=value."""
    merged = OmegaConf.create({"search": OmegaConf.load(CONF.parent / "default.yaml")})
    merged["m"] = OmegaConf.merge(OmegaConf.load(CONF / f"{method}.yaml"), OmegaConf.from_dotlist(list(chosen)))
    settings = OmegaConf.to_container(merged["m"], resolve=True)
    assert isinstance(settings, dict)
    return {str(k): v for k, v in settings.items()}


def main() -> None:
    """Runs the table."""
    parser = arguments(str(__doc__), "outputs/benchmarks/accuracy")
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), choices=CLASSES)
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
        "--boat-bands",
        nargs="+",
        type=int,
        default=[1, 2, 3, 4],
        help="in B, G, R, NIR order; 1 2 3: without near infrared",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("siamese_sat").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for method in args.methods:
        settings = settings_of(method, args.set)
        for name in args.classes:
            rows += run(args, name, method, settings)
            shown = summary(pd.DataFrame([r for r in rows if r["class"] == name and r["method"] == method]))
            print(shown[shown["class"] == name].to_string(index=False, header=name == args.classes[0]), flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(args.out / "accuracy.csv", index=False)
    text = markdown(summary(frame))
    head = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
    searched = "whole test sets" if args.scenes is None else f"{args.scenes} test scenes"
    head += f"{'crops' if args.quick else searched}; {json.dumps(args.set)}"
    (args.out / "accuracy.md").write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    picture(frame, args.out / "accuracy.png")
    print(text)


if __name__ == "__main__":
    main()
