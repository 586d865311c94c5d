"""Settings that the libraries beneath would answer with a traceback, or only when hours have gone by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from siamese_sat.errors import InputError

LOGGED = (
    "val/loss", "val/recall_at_1", "val/map_at_r", "val/prototype_accuracy", "val/mean_cosine",
    "val/active_triplets", "val/positive_distance", "val/negative_distance",
    "train/loss", "train/mean_cosine", "train/active_triplets", "train/positive_distance", "train/negative_distance",
)  # fmt: skip
NOVEL = ("val/novel_ap", "val/novel_recall_at_1")
LESS_IS_BETTER = ("loss", "mean_cosine", "active_triplets", "positive_distance")
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
    "callbacks.collapse.window": 1,
}
REAL = {  # setting: least and greatest value
    "optimizer.lr": (1e-12, 1e3),
    "optimizer.weight_decay": (0, 1e3),
    "callbacks.finetune.lr_factor": (1e-12, 1e3),
    "callbacks.collapse.cosine": (1e-6, 1 - 1e-6),
    "callbacks.collapse.tolerance": (0, 1),
    "data.background": (0, 1e3),
    "data.dilation": (0, 10),
    "data.min_valid": (0, 1),
    "data.val_fraction": (1e-6, 0.999),
    "data.augment.gain": (0, 10),
    "data.augment.offset": (0, 10),
    "data.augment.noise": (0, 10),
}
CHOICES: dict[str, tuple[str | bool, ...]] = {
    "data.alpha": ("auto", "mask", "data"),
    "data.split": ("chip", "scene"),
    "callbacks.finetune.batchnorm": ("auto", "trained", "frozen"),
    "monitor.metric": (*LOGGED, *NOVEL),
    "callbacks.checkpoint.monitor": (*LOGGED, *NOVEL),
    "optimized_metric": ("best", *LOGGED, *NOVEL),
}
SEARCH_WHOLE = {
    "search.batch_size": 1,
    "exemplars.per_class": 1,
    "exemplars.seed": 0,
    "search.method.cells": 1,
    "search.method.views": 1,
    "search.method.min_levels": 0,
    "search.method.max_levels": 0,
    "search.method.larger_levels": 0,
    "search.method.dimensions": 1,
    "search.method.samples": 1,
    "output.overlays": 0,
    "output.verdicts": 0,
    "output.ranking": 1,
    "engine.workers": 1,
    "indexing.stride": 1,
    "indexing.dimensions": 2,
    "indexing.exact_below": 0,
    "query.candidates": 1,
    "query.levels": 1,
    "query.partitions": 1,
    "query.refine": 1,
    "search.method.deep_cells": 1,
    "search.method.sizes_per_level": 1,
    "search.expansion.rounds": 0,
    "search.expansion.hits": 1,
}
SEARCH_REAL = {
    "search.nms_iou": (0, 1),
    "search.min_valid": (0, 1),
    "search.method.object_size": (8, 1e4),
    "search.method.scale_step": (1.01, 10),
    "search.method.max_zoom": (0.01, 1000),
    "search.method.contrast": (0, 1),
    "search.method.deep_weight": (0, 100),
    "search.method.size_spread": (0.01, 100),
    "search.method.oblique_trust": (1e-6, 1),
    "search.expansion.least": (0, 1),
    "search.method.shrinkage": (0, 1),
    "search.method.box_scale": (0.1, 10),
    "search.method.vote_iou": (0, 1),
    "search.method.rerank": (0, 100),
    "search.method.tolerance": (0, 1),
    "chip.padding": (0, 5),
    "indexing.shrinkage": (0, 1),
    "query.least": (-1, 1),
    "query.margin": (0, 10),
    "engine.cpus": (0.01, 1e4),
    "engine.gpus": (0, 64),
    "engine.split_mpx": (0.01, 1e9),
}
# Numbers that may be null; of the others under these heads none may.
NULL = ("search.method.max_zoom",)
NOT_NULL = (
    "search.method.", "search.expansion.", "search.nms_iou", "search.min_valid", "search.batch_size", "engine.cpus",
    "engine.gpus", "engine.split_mpx",
)  # fmt: skip
SEARCH_CHOICES: dict[str, tuple[str | bool, ...]] = {
    "engine.name": ("local", "ray"),
    "mode": ("search", "index", "info", "remove", "export", "import"),
    "indexing.vectors": ("features", "embedding"),
    "indexing.stage": ("layer1", "layer2", "layer3"),
    "alpha": ("auto", "mask", "data"),
    "radiometry": ("model", "per_scene"),
    "search.runtime": ("auto", "eager", "cudagraph", "compile", "openvino"),
    "search.method.stage": ("layer1", "layer2", "layer3"),
    "search.method.match_detail": (True, False),
    "output.csv": ("default", "challenge"),
}


def check_training(cfg: DictConfig) -> None:
    """Looks at the settings of a training before anything is read.

    Args:
        cfg: as ``conf/train.yaml`` composes it; what is null or left out is not looked at.

    Raises:
        InputError: a value that cannot be.
    """
    _check(cfg, WHOLE, REAL, CHOICES)
    # Within a search for settings, the folder is not known yet.
    if _remote(OmegaConf.select(cfg, "paths.output_dir", throw_on_resolution_failure=False)):
        raise InputError(
            f"paths.output_dir={cfg.paths.output_dir}: training writes to a folder on this machine; copy best.ckpt to "
            "s3:// afterwards."
        )
    if _remote(cfg.get("ckpt_path")):
        raise InputError(
            f"ckpt_path={cfg.ckpt_path}: training resumes from a file on this machine; copy it here and give its path."
        )
    metric, mode = OmegaConf.select(cfg, "monitor.metric"), OmegaConf.select(cfg, "monitor.mode")
    wanted = "min" if str(metric).endswith(LESS_IS_BETTER) else "max"
    if metric is not None and mode != wanted:
        better = "lower" if wanted == "min" else "higher"
        raise InputError(f"monitor.metric={metric} is better the {better} it is: set monitor.mode={wanted}.")
    held = OmegaConf.select(cfg, "data.holdout_classes")
    if held is not None and not isinstance(held, str | ListConfig):
        raise InputError(f"data.holdout_classes={held!r} must list class names, such as [aircraft].")
    for setting in ("monitor.metric", "callbacks.checkpoint.monitor", "optimized_metric"):
        value = OmegaConf.select(cfg, setting)
        if value in NOVEL and not held:
            raise InputError(f"{setting}={value} needs data.holdout_classes: classes that are kept out of training.")
    _check_bands("data.bands", OmegaConf.select(cfg, "data.bands"))


def check_search(cfg: DictConfig) -> None:
    """Looks at the settings of a search before anything is read.

    Args:
        cfg: as ``conf/search.yaml`` composes it; what is null or left out is not looked at.

    Raises:
        InputError: a value that cannot be.
    """
    _check(cfg, SEARCH_WHOLE, SEARCH_REAL, SEARCH_CHOICES)
    for name in (*SEARCH_WHOLE, *SEARCH_REAL):
        head, _, key = name.rpartition(".")
        given = OmegaConf.select(cfg, head)
        if name.startswith(NOT_NULL) and name not in NULL and given is not None and given.get(key, 0) is None:
            raise InputError(f"{name}=null: it must be a number.")
    devices, gpus = OmegaConf.select(cfg, "engine.devices"), OmegaConf.select(cfg, "engine.gpus")
    if devices is not None and (not isinstance(devices, ListConfig) or not devices):
        raise InputError(f"engine.devices={devices!s} must list devices, such as [cuda:0,cuda:1], or be null.")
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise InputError(f"engine.gpus={gpus}: Ray gives a worker whole GPUs, or a part of one.")
    if gpus == 0 and str(OmegaConf.select(cfg, "search.device")).startswith("cuda"):
        raise InputError(f"search.device={cfg.search.device} needs engine.gpus above 0.")
    verify = OmegaConf.select(cfg, "query.verify")
    if not isinstance(verify, bool) and verify not in ("auto", "cells", "pixels"):
        raise InputError(f"query.verify={verify} is none of auto, cells, pixels and false.")
    if cfg.index is not None and OmegaConf.select(cfg, "search.expansion.rounds"):
        raise InputError("search.expansion is for searches without an index; set search.expansion.rounds=0.")
    if cfg.bands is not None:
        _check_bands("bands", cfg.bands)
    vector = OmegaConf.select(cfg, "output.vector") or []
    strange = sorted(set(map(str, vector)) - {"gpkg", "geojson", "parquet"})
    if strange:
        raise InputError(f"output.vector names {strange[0]!r}; known are geojson, gpkg, parquet.")
    if cfg.mode != "search" and cfg.index is None:
        raise InputError(f"mode={cfg.mode} is done with an index; set index=<folder or s3://>.")
    if cfg.search.threshold == "per_class":
        _check_per_class(cfg)
    if isinstance(cfg.search.threshold, int | float) and not 0 <= cfg.search.threshold <= 1:
        raise InputError(f"search.threshold={cfg.search.threshold} must lie between 0 and 1.")
    if cfg.feedback.detections is None and (cfg.feedback.positives or cfg.feedback.negatives):
        raise InputError(
            "feedback.positives and .negatives are rows of a detections.csv; name it: feedback.detections."
        )


def _check_per_class(cfg: DictConfig) -> None:
    """Thresholds of a training are on the scale of its calibration, for windows of pixels."""
    if not str(cfg.search.method._target_).endswith("WindowSearch"):
        raise InputError("search.threshold=per_class holds for search/method=window, on whose scores it was found.")
    if cfg.ckpt_path is None:
        raise InputError("search.threshold=per_class takes what a training found; give its best.ckpt as ckpt_path.")
    if OmegaConf.select(cfg, "search.method.calibration") == "scenes":
        raise InputError(
            "search.threshold=per_class was found on scores of the training's calibration; set "
            "search.method.calibration=training."
        )
    if cfg.index is not None and (cfg.query.verify is False or cfg.query.places is not None):
        raise InputError("search.threshold=per_class is not for an index's vectors: set query.verify=pixels.")


def _check(
    cfg: DictConfig,
    whole: Mapping[str, int],
    real: Mapping[str, tuple[float, float]],
    choices: Mapping[str, tuple[str | bool, ...]],
) -> None:
    for name, least in whole.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and (not _whole(value) or value < least):
            raise InputError(f"{name}={value!r} must be a whole number from {least} up.")
    for name, (low, high) in real.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and (not isinstance(value, int | float) or not low <= value <= high):
            raise InputError(f"{name}={value!r} must be a number from {low:g} to {high:g}.")
    for name, known in choices.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and value not in known:
            named = [str(one).lower() if isinstance(one, bool) else one for one in known]
            raise InputError(f"{name}={value!r} is none of {', '.join(named)}.")


def _check_bands(name: str, bands: Any) -> None:  # noqa: ANN401 - a setting may be anything
    if not isinstance(bands, ListConfig) or not bands or not all(_whole(b) and b > 0 for b in bands):
        raise InputError(f"{name}={bands!s} must list band numbers from 1 up, such as [3,2,1].")


def _remote(path: Any) -> bool:  # noqa: ANN401 - a setting may be anything
    """Whether it is an address, of which a path would make a folder called ``s3:``."""
    return path is not None and re.match(r"\w[\w+.-]+:/", str(path)) is not None


def _whole(value: Any) -> bool:  # noqa: ANN401 - a setting may be anything
    return isinstance(value, int) and not isinstance(value, bool)
