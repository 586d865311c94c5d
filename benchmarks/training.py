"""What a training recipe is worth to the search for new things: losses and BatchNorm modes on the same chips and steps.

Five classes of real imagery; each is held out in turn (or those that --holdout names), the others are trained. Every
recipe starts from the same weights, sees the same scenes, split, batches and augmentation, and is validated after its
last step: on trained classes, and on the held-out class by retrieval from five chips. Scenes are on one side of the
split. "untrained" is the backbone's weights with a random head, before the first step. Writes training.md,
training.csv and training.png.

    python benchmarks/training.py --data <folder> --weights <file> [--steps 400] [--holdout aircraft]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from bench import markdown
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from siamese_sat.data.datamodule import ChipDataModule
from siamese_sat.device import training_precision
from siamese_sat.settings import check_training
from siamese_sat.training import build_module

CONF = Path(__file__).resolve().parent.parent / "conf"
CLASSES = {  # name here: folder, name in its labels
    "aircraft": ("aircraft", "aircraft"),
    "tanks": ("storage_tanks", "storage tank"),
    "ships": ("ships", "ship"),
    "pools": ("swimming_pools", "swimming pool"),
    "turbines": ("wind_turbines", "wind turbine"),
}
LOSSES = ("triplet", "supcon", "multi_similarity", "proxy_anchor")
BATCHNORM = ("trained", "frozen")
UNTRAINED = "untrained"
FIGURES = {  # column: what the module logs it as
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "mean_cosine": "val/mean_cosine",
    "active": "val/active_triplets",
    "recall_at_1": "val/recall_at_1",
    "novel_recall_at_1": "val/novel_recall_at_1",
    "novel_ap": "val/novel_ap",
}


def settings(args: argparse.Namespace, held: str, seed: int, loss: str, batchnorm: str) -> DictConfig:
    """What train.py would be given for one run."""
    overrides = [
        f"loss={loss}", f"seed={seed}",
        f"callbacks.finetune.batchnorm={batchnorm}", "callbacks.finetune.warmup_epochs=1",
        f"model.variant={args.variant}", "data.split=scene", "data.bands=[3,2,1]", "data.max_blocks=4",
        f"trainer.max_epochs={args.epochs}", f"sampler.batches_per_epoch={max(1, args.steps // args.epochs)}",
        *args.set,
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides)
    cfg.paths.output_dir = str(args.out)
    cfg.data.labels = [str(args.data / folder / "train.json") for folder, _ in CLASSES.values()]
    cfg.data.holdout_classes = [CLASSES[held][1]]
    cfg.model.weights = str(args.weights) if args.weights is not None else None
    check_training(cfg)
    return cfg


def run(cfg: DictConfig, data: ChipDataModule, train: bool) -> dict[str, float]:
    """One recipe: its figures at the end, or before the first step."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    module = build_module(cfg, data)
    module.margin = 0.0  # for every loss alike: anchors whose nearest negative is no farther than its farthest positive
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        precision=training_precision(str(cfg.trainer.precision), cfg.trainer.accelerator),
        callbacks=[instantiate(cfg.callbacks.finetune), instantiate(cfg.callbacks.collapse)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        check_val_every_n_epoch=cfg.trainer.max_epochs,
    )
    started = time.perf_counter()
    if train:
        trainer.fit(module, datamodule=data)
    else:
        trainer.validate(module, datamodule=data, verbose=False)
    found = {k: float(trainer.callback_metrics.get(name, float("nan"))) for k, name in FIGURES.items()}
    return {**found, "steps": float(trainer.global_step), "seconds": time.perf_counter() - started}


def compare(args: argparse.Namespace) -> pd.DataFrame:
    """A row for each recipe, held-out class and seed; what stands so far is on disk after each."""
    rows: list[dict[str, Any]] = []
    recipes = [(UNTRAINED, "-"), *((loss, mode) for loss in args.losses for mode in args.batchnorm)]
    for held in args.holdout:
        for seed in args.seeds:
            first = settings(args, held, seed, LOSSES[0], BATCHNORM[0])
            data: ChipDataModule = instantiate(first.data, sampler=instantiate(first.sampler))
            data.setup()
            chance = float((data.val_chips.labels >= len(data.classes)).float().mean())
            for loss, mode in recipes:
                trained = loss != UNTRAINED
                cfg = settings(args, held, seed, *((loss, mode) if trained else (LOSSES[0], BATCHNORM[0])))
                row = {"loss": loss, "batchnorm": mode, "held_out": held, "seed": seed, **run(cfg, data, trained)}
                rows.append({**row, "chance_ap": chance})
                print(
                    f"{held:9} seed {seed}  {loss:16} {mode:8} loss {row['train_loss']:7.3f}  mean cosine "
                    f"{row['mean_cosine']:.3f}  active {row['active']:.2f}  recall@1 {row['recall_at_1']:.3f}  "
                    f"novel AP {row['novel_ap']:.3f} (chance {chance:.3f})  {row['seconds']:.0f} s",
                    flush=True,
                )
                pd.DataFrame(rows).to_csv(args.out / "training.csv", index=False)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over held-out classes and seeds, a row a recipe, and the novel AP of each held-out class."""
    lines = []
    for (loss, mode), part in rows.groupby(["loss", "batchnorm"], sort=False):
        line = {"loss": loss, "BatchNorm": mode}
        for title, column in (
            ("final loss", "train_loss"), ("mean cosine", "mean_cosine"), ("active", "active"),
            ("recall@1, trained", "recall_at_1"), ("recall@1, held out", "novel_recall_at_1"), ("novel AP", "novel_ap"),
        ):  # fmt: skip
            mean, spread = part[column].mean(), part[column].std(ddof=0)
            line[title] = "" if np.isnan(mean) else f"{mean:.3f} ± {spread:.3f}"
        for held, mine in part.groupby("held_out", sort=False):
            line[f"novel AP, {held}"] = f"{mine.novel_ap.mean():.3f}"
        lines.append(line)
    chance = rows.groupby("held_out", sort=False)["chance_ap"].mean()
    last = {"loss": "chance", "novel AP": f"{chance.mean():.3f}"}
    lines.append({**last, **{f"novel AP, {held}": f"{value:.3f}" for held, value in chance.items()}})
    return pd.DataFrame(lines).fillna("")


def picture(rows: pd.DataFrame, path: Path) -> None:
    """Three figures of every run, recipe by recipe, a colour for each held-out class."""
    from matplotlib.figure import Figure

    recipes = list(dict.fromkeys(zip(rows.loss, rows.batchnorm, strict=True)))
    figure = Figure(figsize=(11, 1.4 + 0.42 * len(recipes)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]
    panels = {
        "novel_ap": "novel AP from five chips",
        "recall_at_1": "recall@1 of trained classes",
        "mean_cosine": "mean cosine",
    }
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for i, (held, part) in enumerate(rows.groupby("held_out", sort=False)):
            place = [recipes.index(r) for r in zip(part.loss, part.batchnorm, strict=True)]
            axis.scatter(part[column], place, s=20, alpha=0.75, color=colours[i % 5], label=f"{held} held out")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xlim(-0.02, 1.02)
    axes[0].set_yticks(range(len(recipes)), [loss if m == "-" else f"{loss}, {m}" for loss, m in recipes])
    axes[0].invert_yaxis()
    figure.supxlabel("a dot a run", fontsize=9)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with <class>/train.json in COCO form")
    parser.add_argument("--weights", type=Path, help="ResNet50 weights; none starts at random")
    parser.add_argument("--variant", default="v1", choices=["v1", "v1.5"], help="which ResNet50 the weights are of")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/training"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4, help="parts of the steps; in the first the backbone is frozen")
    parser.add_argument("--holdout", nargs="+", default=list(CLASSES), choices=list(CLASSES))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--batchnorm", nargs="+", choices=BATCHNORM, help="default: both; trained alone at random")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="settings of train.py for all recipes, name=value")
    args = parser.parse_args()
    if args.steps < args.epochs or args.epochs < 1:
        parser.error("--epochs must be 1 or more and --steps no fewer")
    # Statistics that nobody has learned are nothing to keep.
    args.batchnorm = args.batchnorm or (BATCHNORM if args.weights is not None else BATCHNORM[:1])
    logging.basicConfig(level=logging.WARNING)
    for name in ("siamese_sat", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = compare(args)
    text = markdown(summary(rows).set_index("loss"))
    head = f"{platform.machine()}, torch {torch.__version__}; {args.steps} steps in {args.epochs} epochs, seeds "
    head += f"{args.seeds}; weights {args.weights.name if args.weights else 'random'}; {json.dumps(args.set)}"
    (args.out / "training.md").write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    picture(rows, args.out / "training.png")
    print(text)


if __name__ == "__main__":
    main()
