"""One training run: a config in, a checkpoint that search understands out."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from siamese_sat.completion import complete_checkpoint
from siamese_sat.data.datamodule import ChipDataModule
from siamese_sat.device import training_precision
from siamese_sat.distributed import end_together, is_first, leave_group
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import read_checkpoint
from siamese_sat.model.embedder import Embedder
from siamese_sat.model.module import MetricLearner
from siamese_sat.report import plot, sheet
from siamese_sat.report.render import rgb_bands
from siamese_sat.settings import check_training

log = logging.getLogger(__name__)

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
    leave_group()
    _tell_why_it_ended(trainer)
    return _finish(cfg, trainer, data, folder)


def _tell_why_it_ended(trainer: L.Trainer) -> None:
    stopper = trainer.early_stopping_callback
    if stopper is not None and trainer.should_stop and stopper.stopping_reason_message:
        log.info("Stopped early, after epoch %d: %s", stopper.stopped_epoch, stopper.stopping_reason_message)


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
        told = {**metrics, "checkpoint": os.path.relpath(best, folder.resolve()), "pruned": pruned}
        (folder / METRICS).write_text(json.dumps(told, indent=2), encoding="utf-8")
    if trainer.is_global_zero and not pruned:
        complete_checkpoint(best, data, trainer.strategy.root_device, folder, cfg.seed)
        _draw(folder, data, OmegaConf.select(cfg, "callbacks.finetune.warmup_epochs"))
        log.info("Best checkpoint: %s", best)
        log.info("Curves, chips and similarities: %s", folder)
    return TrainingResult(best, folder, metrics, pruned)


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
