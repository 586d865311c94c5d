"""Two-phase fine-tuning: first the head on a frozen backbone, then the last stages with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import Callback

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STAGES
from siamese_sat.model.module import MetricLearner

log = logging.getLogger(__name__)


class TwoPhaseFinetune(Callback):
    """Phase 1 trains projection and head; phase 2 the named backbone stages too, at a part of the learning rate.

    The optimiser holds all parameters from the start, the backbone's in a group of their own: a frozen parameter has
    no gradient, so AdamW leaves it alone. The phase follows from the epoch and is applied anew at every epoch, so a
    run resumed in either phase goes on as it would have.

    Args:
        warmup_epochs: length of phase 1; 0 starts with phase 2.
        stages: backbone stages that phase 2 trains.
        lr_factor: their learning rate as a part of the head's.
        batchnorm: ``trained`` normalises their features by each batch and learns the statistics; ``frozen`` keeps the
            statistics that the weights brought, which small batches then cannot spoil; ``auto`` keeps them where the
            backbone began with weights, and learns them where it began at random, which has none to keep.

    Raises:
        InputError: a value out of its range, or no such stage.
    """

    def __init__(
        self,
        warmup_epochs: int = 5,
        stages: Sequence[str] = ("layer4",),
        lr_factor: float = 0.1,
        batchnorm: Literal["auto", "trained", "frozen"] = "auto",
    ) -> None:
        if warmup_epochs < 0 or not lr_factor > 0:
            raise InputError("callbacks.finetune: warmup_epochs must be 0 or more and lr_factor above 0.")
        unknown = [s for s in stages if s not in STAGES]
        if unknown:  # said now, not when phase 1 is over
            raise InputError(f"callbacks.finetune.stages: {unknown[0]!r} is no stage; there are {', '.join(STAGES)}.")
        if batchnorm not in ("auto", "trained", "frozen"):
            raise InputError(f"callbacks.finetune.batchnorm={batchnorm!r} is neither auto, trained nor frozen.")
        self.batchnorm = batchnorm
        self.warmup_epochs, self.stages, self.lr_factor = warmup_epochs, tuple(stages), lr_factor
        self._phase: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tells the module its backbone's learning rate before it makes the optimiser."""
        assert isinstance(pl_module, MetricLearner)
        pl_module.backbone_lr_factor = self.lr_factor

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the epoch's phase. Here and not earlier: DistributedDataParallel must first see all parameters."""
        assert isinstance(pl_module, MetricLearner)
        phase = 1 if trainer.current_epoch < self.warmup_epochs else 2
        embedder = pl_module.embedder
        keep = embedder.backbone.pretrained if self.batchnorm == "auto" else self.batchnorm == "frozen"
        embedder.set_trainable(self.stages if phase == 2 else (), keep)
        if phase != self._phase:
            trained = ["projection", "head", *(self.stages if phase == 2 else ())]
            log.info("Epoch %d: phase %d trains %s.", trainer.current_epoch, phase, ", ".join(trained))
        self._phase = phase
