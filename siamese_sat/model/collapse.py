"""Says it when all chips have come to look alike: the loss is then flat, and no metric of it moves."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from siamese_sat.errors import InputError
from siamese_sat.model.module import MetricLearner
from siamese_sat.model.signs import plateau

log = logging.getLogger(__name__)


class CollapseWatch(Callback):
    """Warns once when the embeddings have collapsed, and again at the end of a training that ends so.

    Collapsed: over a window of steps the mean cosine of a batch is near 1 and, for a triplet loss, the loss is near
    the value that it has when all embeddings are one (see `plateau`). The figures stay on the device; they are looked
    at once a window.

    Args:
        window: steps.
        cosine: mean cosine from which embeddings count as one, 0 to 1.
        tolerance: how far the loss may be from its plateau, as a part of it.

    Raises:
        InputError: a value out of its range.
    """

    def __init__(self, window: int = 50, cosine: float = 0.95, tolerance: float = 0.05) -> None:
        if window < 1 or not 0 < cosine < 1 or tolerance < 0:
            raise InputError(
                "callbacks.collapse: window must be 1 or more, cosine between 0 and 1, tolerance 0 or more."
            )
        self.window, self.cosine, self.tolerance = window, cosine, tolerance
        self._seen: deque[Tensor] = deque(maxlen=window)
        self._steps, self._warned = 0, False

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,  # noqa: ANN401 - as Lightning has it
        batch_idx: int,
    ) -> None:
        """Notes the step's loss and mean cosine, and judges a full window."""
        assert isinstance(outputs, Mapping)
        # Lightning hands on the part of the loss that the step adds to the accumulated gradient.
        loss = outputs["loss"].detach().float() * trainer.accumulate_grad_batches
        self._seen.append(torch.stack([loss, outputs["mean_cosine"].float()]))
        self._steps += 1
        if not self._warned and self._steps % self.window == 0:
            self._judge(trainer, pl_module, "The embeddings have collapsed")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judges the last window, however short."""
        if self._seen:
            self._judge(trainer, pl_module, "The training ended with collapsed embeddings")

    def _judge(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str) -> None:
        assert isinstance(pl_module, MetricLearner)
        loss, cosine = torch.stack(list(self._seen)).mean(0).tolist()
        flat = plateau(pl_module.loss)
        if cosine < self.cosine or (flat is not None and abs(loss - flat) > self.tolerance * flat):
            return
        self._warned = True
        if not trainer.is_global_zero:
            return
        if flat is None:
            sign = ""
            remedy = "Try another loss (loss=supcon, loss=multi_similarity) or a lower optimizer.lr."
        else:
            sign = f", with the loss at {loss:.3f}, where a triplet loss is when all chips look alike ({flat:.3f})"
            remedy = (
                "Use loss=supcon or loss=multi_similarity; a triplet loss may come apart once the backbone learns too "
                "(callbacks.finetune.warmup_epochs=0)."
            )
        log.warning(
            "%s: the mean cosine of a batch was %.3f over the last %d steps%s. %s",
            what, cosine, len(self._seen), sign, remedy,
        )  # fmt: skip
