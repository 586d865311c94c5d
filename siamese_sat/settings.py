"""Settings that the libraries beneath would answer with a traceback, or only when hours have gone by."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from siamese_sat.errors import InputError

LOGGED = (
    "val/loss", "val/recall_at_1", "val/map_at_r", "val/prototype_accuracy", "val/mean_cosine",
    "train/loss", "train/mean_cosine",
)  # fmt: skip
WHOLE = {  # setting: least value
    "seed": 0,
    "trainer.max_epochs": -1,
    "sampler.classes_per_batch": 2,
    "sampler.chips_per_class": 2,
    "sampler.batches_per_epoch": 1,
    "model.hidden_dim": 1,
    "model.embedding_dim": 1,
    "data.min_boxes": 1,
    "data.chip.size": 8,
    "callbacks.finetune.warmup_epochs": 0,
}
REAL = {  # setting: least and greatest value
    "optimizer.lr": (1e-12, 1e3),
    "optimizer.weight_decay": (0, 1e3),
    "callbacks.finetune.lr_factor": (1e-12, 1e3),
    "data.background": (0, 1e3),
    "data.dilation": (0, 10),
    "data.min_valid": (0, 1),
    "data.val_fraction": (1e-6, 0.999),
    "data.augment.gain": (0, 10),
    "data.augment.offset": (0, 10),
    "data.augment.noise": (0, 10),
}
CHOICES = {
    "data.alpha": ("auto", "mask", "data"),
    "data.split": ("chip", "scene"),
    "monitor.metric": LOGGED,
    "callbacks.checkpoint.monitor": LOGGED,
    "optimized_metric": ("best", *LOGGED),
}


def check_training(cfg: DictConfig) -> None:
    """Looks at the settings of a training before anything is read.

    Args:
        cfg: as ``conf/train.yaml`` composes it; what is null or left out is not looked at.

    Raises:
        InputError: a value that cannot be.
    """
    for name, least in WHOLE.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and (not _whole(value) or value < least):
            raise InputError(f"{name}={value!r} must be a whole number from {least} up.")
    for name, (low, high) in REAL.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and (not isinstance(value, int | float) or not low <= value <= high):
            raise InputError(f"{name}={value!r} must be a number from {low:g} to {high:g}.")
    for name, choices in CHOICES.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and value not in choices:
            raise InputError(f"{name}={value!r} is none of {', '.join(choices)}.")
    bands = OmegaConf.select(cfg, "data.bands")
    if not isinstance(bands, ListConfig) or not bands or not all(_whole(b) and b > 0 for b in bands):
        raise InputError(f"data.bands={bands!s} must list band numbers from 1 up, such as [3,2,1].")


def _whole(value: Any) -> bool:  # noqa: ANN401 - a setting may be anything
    return isinstance(value, int) and not isinstance(value, bool)
