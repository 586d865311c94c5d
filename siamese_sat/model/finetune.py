"""Two-phase fine-tuning: first the head on a frozen backbone, then the last stages with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

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
            statistics that they began with, which small batches then cannot spoil; ``auto`` is frozen where the
            backbone was given weights, even of other stages only, and trained where it began at random. A resumed run
            goes on as it began.

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
        self.keep_statistics: bool | None = None if batchnorm == "auto" else batchnorm == "frozen"
        self.warmup_epochs, self.stages, self.lr_factor = warmup_epochs, tuple(stages), lr_factor
        self._phase: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tells the module its backbone's learning rate before it makes the optimiser."""
        assert isinstance(pl_module, MetricLearner)
        pl_module.backbone_lr_factor = self.lr_factor
        if self.keep_statistics is None:
            self.keep_statistics = pl_module.embedder.backbone.pretrained

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run may not decide anew: its weights come from the checkpoint, whatever it was given."""
        return {"keep_statistics": self.keep_statistics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`; what this run's config says outright stays."""
        if self.batchnorm == "auto":
            self.keep_statistics = state_dict["keep_statistics"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the epoch's phase. Here and not earlier: DistributedDataParallel must first see all parameters."""
        assert isinstance(pl_module, MetricLearner)
        phase = 1 if trainer.current_epoch < self.warmup_epochs else 2
        pl_module.embedder.set_trainable(self.stages if phase == 2 else (), bool(self.keep_statistics))
        if phase != self._phase:
            trained = ["projection", "head", *(self.stages if phase == 2 else ())]
            kept = "; BatchNorm statistics of the stages stay" if phase == 2 and self.keep_statistics else ""
            log.info("Epoch %d: phase %d trains %s%s.", trainer.current_epoch, phase, ", ".join(trained), kept)
        self._phase = phase
