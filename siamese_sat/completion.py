"""What search needs beside the weights, from the best of a training, once it has ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.chip import BACKGROUND, Chips
from siamese_sat.data.datamodule import ChipDataModule
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.model.calibration import class_thresholds, fit_calibration, pair_similarity
from siamese_sat.model.checkpoint import TrainedModel, add_to_checkpoint, load_model
from siamese_sat.model.embedder import Embedder
from siamese_sat.model.statistics import measure
from siamese_sat.report import plot
from siamese_sat.search.background import sample_background
from siamese_sat.search.engine import Engine
from siamese_sat.search.ladder import ladder

log = logging.getLogger(__name__)

# Whose background the checkpoint keeps: the stages and the size of things that template search has by default.
BACKGROUND_STAGES, OBJECT_SIZE = ("layer2", "layer3"), 49.0
BACKGROUND_SAMPLES = 96


def complete_checkpoint(best: Path, data: ChipDataModule, device: torch.device, folder: Path, seed: int) -> None:
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
    steps = sorted({r.step for found in ladder(longer, OBJECT_SIZE, 1.25, 0, 0).values() for r in found})
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
