"""One training run: a config in, a checkpoint that search understands out."""

from __future__ import annotations

import functools
import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from siamese_sat.data.chip import BACKGROUND, Chips
from siamese_sat.data.datamodule import ChipDataModule
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.device import training_precision
from siamese_sat.distributed import end_together, is_first
from siamese_sat.errors import InputError
from siamese_sat.model.calibration import class_thresholds, fit_calibration, pair_similarity
from siamese_sat.model.checkpoint import TrainedModel, add_to_checkpoint, load_model, read_checkpoint
from siamese_sat.model.embedder import Embedder
from siamese_sat.model.module import MetricLearner
from siamese_sat.model.statistics import measure
from siamese_sat.report import plot, sheet
from siamese_sat.report.render import rgb_bands
from siamese_sat.search.background import sample_background
from siamese_sat.search.engine import Engine
from siamese_sat.search.ladder import ladder
from siamese_sat.settings import check_training

log = logging.getLogger(__name__)

# Whose background the checkpoint keeps: the stages and the size of things that template search has by default.
BACKGROUND_STAGES, OBJECT_SIZE = ("layer2", "layer3"), 49.0
BACKGROUND_SAMPLES = 96
METRICS = "metrics.json"


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        checkpoint: the best one, with calibration, thresholds and prototypes.
        folder: everything else the run wrote.
        metrics: the last validation's, and the best value of the monitored one as ``best``.
        pruned: whether a search for settings ended it early; its checkpoint is then only what training had by then.
    """

    checkpoint: Path
    folder: Path
    metrics: Mapping[str, float]
    pruned: bool = False


def train(cfg: DictConfig) -> TrainingResult:
    """Trains, calibrates, and draws what a person wants to see.

    Args:
        cfg: as ``conf/train.yaml`` composes it.

    Raises:
        InputError: the data or a setting cannot be used.
    """
    check_training(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    # Its tips and its inventory of accelerators are not ours to say; it sets its own level when imported.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Both are what this product does on purpose: chips lie in memory, and epochs may be short.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*The number of training batches.*")
    for between in (".*LeafSpec.*", ".*functional.all_gather is deprecated.*"):  # lightning and torch
        warnings.filterwarnings("ignore", between)
    folder = Path(cfg.paths.output_dir)
    try:
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); set paths.output_dir.") from error
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).is_file():
        raise InputError(f"{cfg.ckpt_path}: no such checkpoint to resume from; check ckpt_path.")
    resumed = read_checkpoint(cfg.ckpt_path)["siamese_sat"] if cfg.ckpt_path is not None else None
    data: ChipDataModule = instantiate(cfg.data, sampler=instantiate(cfg.sampler))
    data.setup()
    assert data.radiometry is not None
    if is_first():
        (folder / "radiometry.json").write_text(json.dumps(data.radiometry.to_dict(), indent=2), encoding="utf-8")
    module = build_module(cfg, data)
    for what in ("spec", "classes", "bands"):
        if resumed is not None and resumed[what] != module.carried[what]:
            raise InputError(
                f"{cfg.ckpt_path} was trained with other {what} ({resumed[what]}) than this run "
                f"({module.carried[what]}); resume with the same data and settings."
            )
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c is not None]
    loggers = [instantiate(c) for c in cfg.logger.values() if c is not None]
    precision = training_precision(str(cfg.trainer.precision), cfg.trainer.accelerator)
    trainer: L.Trainer = instantiate(cfg.trainer, precision=precision, callbacks=callbacks, logger=loggers)
    for logger in loggers if is_first() else []:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    try:
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    except MisconfigurationException as error:
        raise InputError(f"{error} Check callbacks, logger and trainer.") from error
    except Exception as error:
        raise end_together(error, getattr(trainer.strategy.launcher, "procs", [])) from error
    return _finish(cfg, trainer, data, folder)


def build_module(cfg: DictConfig, data: ChipDataModule) -> MetricLearner:
    """What is trained, with fresh weights.

    Args:
        cfg: as ``conf/train.yaml`` composes it.
        data: set up.

    Raises:
        InputError: a setting of the model or of the loss cannot be used.
    """
    assert data.radiometry is not None
    embedder: Embedder = instantiate(cfg.model, band_names=list(data.radiometry.names))
    loss = instantiate(cfg.loss.loss)
    if isinstance(loss, functools.partial):  # a loss with a parameter per class
        loss = loss(num_classes=len(data.classes), embedding_size=embedder.spec.embedding_dim)
    return MetricLearner(
        embedder=embedder.to(memory_format=torch.channels_last),
        loss=loss,
        miner=instantiate(cfg.loss.miner) if cfg.loss.miner is not None else None,
        optimizer=instantiate(cfg.optimizer),
        radiometry=data.radiometry,
        classes=data.classes,
        chip=asdict(data.chip),
        bands=data.bands,
        seed=cfg.seed,
        loss_lr_factor=cfg.loss.get("lr_factor", 1.0),
    )


def _finish(cfg: DictConfig, trainer: L.Trainer, data: ChipDataModule, folder: Path) -> TrainingResult:
    keeper = trainer.checkpoint_callback
    if not isinstance(keeper, ModelCheckpoint) or not keeper.best_model_path:
        raise InputError(
            "No checkpoint was written; callbacks.checkpoint must stay, and trainer.max_epochs be above 0."
        )
    best = Path(keeper.best_model_path)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    if keeper.best_model_score is not None:
        metrics["best"] = float(keeper.best_model_score)
    pruned = any(getattr(callback, "pruned", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        told = {**metrics, "pruned": True} if pruned else metrics
        (folder / METRICS).write_text(json.dumps(told, indent=2), encoding="utf-8")
    if trainer.is_global_zero and not pruned:
        _complete_checkpoint(best, data, trainer.strategy.root_device, folder, cfg.seed)
        _draw(folder, data, OmegaConf.select(cfg, "callbacks.finetune.warmup_epochs"))
        log.info("Best checkpoint: %s", best)
        log.info("Curves, chips and similarities: %s", folder)
    return TrainingResult(best, folder, metrics, pruned)


def _complete_checkpoint(best: Path, data: ChipDataModule, device: torch.device, folder: Path, seed: int) -> None:
    """Calibration, thresholds and prototypes of the best weights, into their checkpoint.

    Chips of held-out classes take part in the calibration, since it is things of no trained class that exemplars show.
    They leave no prototype, extent or threshold: training has not seen them, and a search shows its own exemplars.
    """
    model = load_model(best)
    embedder = model.embedder.to(device)
    train, val = (
        embed_chips(embedder, chips, model.radiometry, device) for chips in (data.train_chips, data.val_chips)
    )
    labels = data.val_chips.labels
    pairs = pair_similarity(val, labels, data.val_chips.background, seed)
    calibration = fit_calibration(pairs)
    log.info("Calibration: %s.", calibration)
    onehot = F.one_hot(data.train_chips.labels, len(data.classes)).float()
    prototypes = F.normalize(onehot.T @ train, dim=1)
    known = labels < len(data.classes)
    thresholds = class_thresholds(calibration(val[known] @ prototypes.T), labels[known], len(data.classes))
    sides = data.train_chips.boxes[:, 2:] - data.train_chips.boxes[:, :2]
    extents = {
        name: np.median(sides[data.train_chips.labels.numpy() == i], axis=0).tolist()
        for i, name in enumerate(data.classes)
    }
    add_to_checkpoint(
        best,
        {
            "calibration": calibration.to_dict(),
            "thresholds": dict(zip(data.classes, thresholds, strict=True)),
            "prototypes": {n: p.clone() for n, p in zip(data.classes, prototypes, strict=True) if n != BACKGROUND},
            "extents": extents,
            "background": _background(model, data, extents, device),
        },
    )
    if not (len(pairs.same) and len(pairs.different)):
        log.warning("No validation pairs of one class, or of two: no similarity.png.")
    else:
        plot.similarity_histogram(
            pairs.same, pairs.different, calibration.slope, calibration.intercept, folder / "similarity.png", 0.3,
            calibration.kind,
        )  # fmt: skip


def _background(
    model: TrainedModel, data: ChipDataModule, extents: Mapping[str, list[float]], device: torch.device
) -> dict[str, Any]:
    """Features of random places of the training scenes, at the scales of its classes, for search in small scenes."""
    longer = {name: [max(sides)] for name, sides in extents.items() if name != BACKGROUND}
    steps = sorted({s for found in ladder(longer, OBJECT_SIZE, 1.25, 0, 0).values() for s in found})
    first, deep = BACKGROUND_STAGES
    samples = list(
        sample_background(
            Engine(model.embedder, device),
            data.opened,
            lambda scene: model.radiometry,
            steps,
            first,
            BACKGROUND_SAMPLES,
            data.seed,
            deep,
        )
    )
    found = {
        first: measure(s.features[:, s.good][:, :, None] for s in samples),
        deep: measure(s.deep for s in samples if s.deep is not None and bool(s.good.all())),
    }
    return {stage: statistics.to_dict() for stage, statistics in found.items() if statistics is not None}


@torch.inference_mode()
def embed_chips(embedder: Embedder, chips: Chips, radiometry: Radiometry, device: torch.device) -> Tensor:
    """Embeddings ``[N, D]`` of all chips, on the CPU, in fp32."""
    parts = [
        embedder(radiometry.normalise(chips.pixels[i : i + 256].to(device))).cpu() for i in range(0, len(chips), 256)
    ]
    return torch.cat(parts)


def _draw(folder: Path, data: ChipDataModule, warmup_epochs: int | None) -> None:
    for logged in folder.rglob("metrics.csv"):
        plot.curves(logged, folder / "curves.png", phase2=warmup_epochs or None)
    shown: list[int] = []
    for c in range(len(data.classes)):
        shown.extend(np.flatnonzero(data.train_chips.labels.numpy() == c)[:20].tolist())
    sheet.contact_sheet(
        data.train_chips.pixels[shown].numpy(),
        [data.classes[int(data.train_chips.labels[i])] for i in shown],
        folder / "chips.png",
        rgb=rgb_bands(data.radiometry.names) if data.radiometry is not None else (2, 1, 0),
    )


def monitored(result: TrainingResult, name: str) -> float:
    """The figure that a sweep optimises.

    Raises:
        InputError: training logged no such metric.
    """
    value: Any = result.metrics.get(name)
    if value is None or math.isnan(value):
        raise InputError(f"optimized_metric={name!r} was not logged; there are {', '.join(sorted(result.metrics))}.")
    return float(value)
