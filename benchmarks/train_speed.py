"""What Lightning, callbacks, logging and validation cost beside the steps of training; mixed precision against fp32.

Sides take turns in every round, each from the same weights over the same batches of the same made-up chips:

    bare            a loop of the steps and nothing else: batch, normalise, augment, network, miner, loss, AdamW
    fit             trainer.fit of the same module, logging its figures, no validation, no checkpoint
    fit, whole      the same as train.py runs it: validation after each epoch, checkpoints, loggers
    bare 32, fit 32 the first two in fp32, where the precision in force is another

Steps are of phase 2, layer4 training with the head. Prints medians, ratios (the median of each round's own) and the
stages of the bare loop; writes train_speed.md and .csv.

    python benchmarks/train_speed.py [--epochs 2] [--steps 15] [--rounds 5]
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import contextlib
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from bench import Stages, machine, markdown, medians, report, rounds
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from siamese_sat.data.datamodule import ChipDataModule
from siamese_sat.device import pick_device, training_precision
from siamese_sat.synthetic import make_dataset
from siamese_sat.training import build_module

CONF = Path(__file__).resolve().parent.parent / "conf"
AMP = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Bench:
    """One data set, cut once, and modules that all begin alike."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        paths = make_dataset(folder / "data", train_scenes=2, search_scenes=0, size=1024, per_class=8, progress=False)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.cfg: DictConfig = compose("train", [
                f"data.scenes={paths.train}", f"paths.output_dir={folder / 'out'}",
                f"paths.cache_dir={folder / 'cache'}",
                "model.weights=null", f"model.backbone={args.backbone}", "callbacks.finetune.warmup_epochs=0",
                "callbacks.progress=null", "+trainer.enable_progress_bar=false",
                f"trainer.max_epochs={args.epochs}", f"trainer.accelerator={args.accelerator}",
                f"sampler.batches_per_epoch={args.steps}", *args.set,
            ])  # fmt: skip
        self.data: ChipDataModule = instantiate(self.cfg.data, sampler=instantiate(self.cfg.sampler))
        self.data.setup()
        self.device = pick_device("auto" if args.accelerator != "cpu" else "cpu")
        self.precision = training_precision(str(self.cfg.trainer.precision), args.accelerator)

    def fit(self, precision: str, whole: bool) -> dict[str, Any]:
        """Lightning's."""
        module = self._module()
        callbacks = {k: v for k, v in self.cfg.callbacks.items() if v is not None}
        if not whole:
            callbacks = {k: v for k, v in callbacks.items() if k in ("finetune", "collapse")}
        trainer: L.Trainer = instantiate(
            self.cfg.trainer, precision=precision, callbacks=[instantiate(c) for c in callbacks.values()],
            logger=[instantiate(c) for c in self.cfg.logger.values()] if whole else False,
            enable_checkpointing=whole, limit_val_batches=None if whole else 0,
        )  # fmt: skip
        started = time.perf_counter()
        trainer.fit(module, datamodule=self.data)
        self._wait()
        return self._row(time.perf_counter() - started)

    def bare(self, precision: str) -> dict[str, Any]:
        """The same steps, by hand."""
        cfg, stages, device = self.cfg, Stages(), self.device
        module = self._module()
        module.backbone_lr_factor = cfg.callbacks.finetune.lr_factor
        module.to(device)
        optimizer: Any = module.configure_optimizers()
        dtype = AMP.get(precision)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        radiometry = self.data.radiometry
        assert radiometry is not None
        started = time.perf_counter()
        loader = self.data.train_dataloader()
        # Waiting for a GPU after each stage would slow what is measured: there only the sum counts.
        stage: Callable[[str], Any] = stages.stage if device.type == "cpu" else lambda _: contextlib.nullcontext()
        module.train()
        module.embedder.set_trainable(cfg.callbacks.finetune.stages, module.embedder.backbone.pretrained)
        for _ in range(self.args.epochs):
            batches = iter(loader)
            while True:
                with stage("batch"):
                    got = next(batches, None)
                if got is None:
                    break
                with stage("normalise, augment"):
                    pixels, labels = (t.to(device) for t in got)
                    pixels = self.data.augment(radiometry.normalise(pixels))
                with stage("forward"):
                    context = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
                    with context:
                        embeddings = module(pixels)
                with stage("loss"):
                    loss = module.criterion(embeddings, labels)
                with stage("backward"):
                    optimizer.zero_grad()
                    scaler.scale(loss).backward()
                with stage("optimiser"):
                    scaler.step(optimizer)
                    scaler.update()
        self._wait()
        return {**self._row(time.perf_counter() - started), **stages.seconds}

    def _module(self) -> Any:  # noqa: ANN401 - a MetricLearner
        L.seed_everything(0, verbose=False)
        return build_module(self.cfg, self.data)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _row(self, seconds: float) -> dict[str, Any]:
        steps = self.args.epochs * self.args.steps
        return {"seconds": seconds, "steps": steps, "steps/s": steps / seconds}


def ratios(rows: pd.DataFrame, gpu: bool) -> pd.DataFrame:
    """Each round's own ratio of steps a second, and the median of them."""
    wanted = [
        ("fit against the bare loop", "fit", "bare", 0.95),
        ("fit with validation, checkpoints and loggers against the bare loop", "fit, whole", "bare", float("nan")),
        ("fit against fit in fp32", "fit", "fit 32", 2.0 if gpu else float("nan")),
        ("bare loop against bare loop in fp32", "bare", "bare 32", float("nan")),
    ]
    lines = []
    for title, one, other, least in wanted:
        if {one, other} <= set(rows.side):
            a, b = (rows[rows.side == s].set_index("round")["steps/s"] for s in (one, other))
            ratio = a / b
            lines.append(
                {"ratio": title, "median": ratio.median(), "from": ratio.min(), "to": ratio.max(), "wanted": least}
            )
    return pd.DataFrame(lines).set_index("ratio")


def main() -> None:
    """Runs the rounds and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--set", nargs="*", default=[], help="settings of train.py, name=value")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/train_speed"))
    args = parser.parse_args()
    for name in ("siamese_sat", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    begun = machine()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        sides = {
            "bare": lambda: bench.bare(bench.precision),
            "fit": lambda: bench.fit(bench.precision, False),
            "fit, whole": lambda: bench.fit(bench.precision, True),
        }
        if bench.precision != "32-true":
            sides |= {"bare 32": lambda: bench.bare("32-true"), "fit 32": lambda: bench.fit("32-true", False)}
        sides["bare"]()
        sides["fit"]()
        rows = rounds(sides, args.rounds)
    table = medians(rows, list(sides))
    title = (
        f"{args.backbone}, {bench.precision}, batches of {len(next(iter(bench.data.train_dataloader()))[1])} chips; "
        f"medians of {args.rounds} rounds of {args.epochs} x {args.steps} steps.\n\n"
        f"Before: {begun}\n\nAfter: {machine()}"
    )
    shown = ["seconds", "steps", "steps/s"]
    stages = table.drop(columns=shown).dropna(how="all")
    parts = [markdown(table[shown]), markdown(ratios(rows, bench.device.type == "cuda"))]
    report(args.out, "train_speed", title, rows, [*parts, markdown(stages)] if len(stages) else parts)


if __name__ == "__main__":
    main()
