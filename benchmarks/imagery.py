"""Real imagery that benchmarks search: scenes and labels, draws of exemplars, and a method made ready to search."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
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
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import TrainedModel, load_model
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import build_embedder
from siamese_sat.model.runtime import RUNTIMES
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar, draw_exemplars
from siamese_sat.search.method import SearchMethod

CONF = Path(__file__).resolve().parent.parent / "conf" / "search" / "method"
COCO = {
    "aircraft": "aircraft",
    "tanks": "storage_tanks",
    "ships": "ships",
    "pools": "swimming_pools",
    "turbines": "wind_turbines",
}
CLASSES = (*COCO, "boats")
# Few, in three scenes: no more than an anecdote, but of four bands.
VEHICLES = ("car", "camping car", "van", "pickup", "truck")
# --quick: so many test scenes, cut to so many pixels a side round the densest labels.
QUICK = {"aircraft": (6, 1280), "tanks": (5, 512), "ships": (24, 512), "pools": (30, 512), "turbines": (50, 300)}


def load(
    data: Path, name: str, quick: bool, bands: Sequence[int] = (1, 2, 3, 4)
) -> tuple[list[Scene], pd.DataFrame, list[Scene], pd.DataFrame]:
    """Training scenes and labels, test scenes and labels; ``bands`` of scenes that have four: boats and vehicles."""
    if name == "vehicles":
        scenes = [open_scene(path, list(bands)) for path in sorted((data / "vedai").glob("*.tif"))]
        labels = LabelReader().read(scenes, None)
        labels = labels[labels.class_name.isin(VEHICLES)].reset_index(drop=True)
        most = labels.scene.value_counts().idxmax()
        shown, searched = ([s for s in scenes if (s.path == most) == is_most] for is_most in (False, True))
        there = labels.scene == most
        return shown, labels[~there].reset_index(drop=True), searched, labels[there].reset_index(drop=True)
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
) -> tuple[SearchMethod, Callable[..., None], float]:
    """A method by these settings, ready to search the scenes for the exemplars.

    Returns:
        It; what prepares it, or one that is made of it, with other exemplars; and when preparing began, weights loaded.
    """
    device = pick_device(args.device)
    if args.ckpt is not None:
        model = load_model(args.ckpt)
    else:
        names = band_names(len(test[0].bands))
        torch.manual_seed(0)  # what the file has no weights for is random, as search.py has it
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

    def prepare(shown: Sequence[Exemplar], made: SearchMethod = method) -> None:
        made.prepare(model, engine, shown, lambda scene: model.radiometry, test)

    started = time.perf_counter()
    prepare(exemplars)
    return method, prepare, started


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
