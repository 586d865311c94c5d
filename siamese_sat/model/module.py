"""The LightningModule: one step of metric learning, validation, optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.distributed import ranks
from siamese_sat.errors import InputError
from siamese_sat.model.embedder import Embedder
from siamese_sat.model.metrics import fixed_batch_means, retrieval
from siamese_sat.model.novel import novel_retrieval
from siamese_sat.model.signs import distances, mean_cosine, triplet_margin


class MetricLearner(L.LightningModule):
    """Trains an embedder so that chips of a class lie together.

    A checkpoint of it carries all that search needs: the embedder's spec, the radiometry and the class names.

    Args:
        embedder: what is trained.
        loss: a pytorch-metric-learning loss, called as ``loss(embeddings, labels, indices)``.
        miner: a pytorch-metric-learning miner, or None.
        optimizer: called with parameter groups; gives the optimiser.
        radiometry: of the training scenes; carried, not used (the data module normalises).
        classes: names of the class numbers that are trained; carried. Validation may bring numbers beyond them.
        chip: size, padding and shape of the chips; carried.
        bands: 1-based band numbers of the training scenes; carried.
        seed: of the validation batches.
        loss_lr_factor: learning rate of the loss's own parameters, where it has any, as a multiple of the head's.

    Raises:
        InputError: the factor is not above 0.
    """

    def __init__(
        self,
        embedder: Embedder,
        loss: nn.Module,
        miner: nn.Module | None,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        radiometry: Radiometry,
        classes: Sequence[str],
        chip: dict[str, Any],
        bands: Sequence[int],
        seed: int = 0,
        loss_lr_factor: float = 1.0,
    ) -> None:
        if not isinstance(loss_lr_factor, int | float) or not loss_lr_factor > 0:
            raise InputError(f"loss.lr_factor={loss_lr_factor!r} must be a number above 0.")
        super().__init__()
        self.embedder, self.loss, self.miner = embedder, loss, miner
        self.optimizer, self.seed = optimizer, seed
        self.backbone_lr_factor, self.loss_lr_factor = 1.0, loss_lr_factor
        self.margin = triplet_margin(loss)  # of the triplets that count as active
        # Plain values only: a checkpoint must load with weights_only.
        self.carried: dict[str, Any] = {
            "spec": embedder.spec.to_dict(),
            "radiometry": radiometry.to_dict(),
            "classes": list(classes),
            "chip": dict(chip),
            "bands": list(bands),
        }
        self._val: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Normalised chips ``[N, C, S, S]`` to embeddings ``[N, D]`` of unit length."""
        embeddings: Tensor = self.embedder(x)
        return embeddings

    def criterion(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, on what the miner picks of it."""
        # Cosines in half precision are 0.004 apart near 1: an exponent of 32 or 50 times that would see steps.
        with torch.autocast(embeddings.device.type, enabled=False):
            picked = self.miner(embeddings, labels) if self.miner is not None else None
            value: Tensor = self.loss(embeddings, labels, picked)
        return value

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """``loss`` of one P x K batch, and its ``mean_cosine`` for whoever watches the steps.

        Of several processes each embeds a batch of its own, and all take the loss of all embeddings together: chips
        of all batches are mined, and what is logged is the same everywhere.
        """
        chips, labels = batch
        embeddings, labels = self._of_all_ranks(self(chips), labels)
        loss = self.criterion(embeddings, labels)
        size = len(labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        drawn = embeddings.detach()
        signs = {"mean_cosine": mean_cosine(drawn), **distances(drawn, labels, self.margin)}
        for name, value in signs.items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        return {"loss": loss, "mean_cosine": signs["mean_cosine"]}

    def _of_all_ranks(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batches of all processes, ``[ranks * B, D]`` and ``[ranks * B]``, each in the order of the ranks.

        Backward, an embedding's gradient is the sum of what all ranks' losses say of it: with R ranks, R times that of
        one loss. DistributedDataParallel then takes the mean over the ranks, which makes it that of one process with
        all batches. Parameters of the loss have the same gradient everywhere, and the mean leaves it.
        """
        if ranks()[1] == 1:
            return embeddings, labels
        return self._gathered(embeddings, sync_grads=True).flatten(0, 1), self._gathered(labels).flatten(0, 1)

    def _validated(self) -> tuple[Tensor, Tensor]:
        """Embeddings and labels of all validation chips in their order; of several processes each has every R-th."""
        embeddings, labels = (torch.cat(parts) for parts in zip(*self._val, strict=True))
        self._val.clear()
        if ranks()[1] == 1:
            return embeddings, labels
        loader = self.trainer.val_dataloaders
        assert loader is not None
        total = len(loader.dataset)  # beyond it the last chip is repeated
        whole = [self._gathered(part).transpose(0, 1).flatten(0, 1)[:total] for part in (embeddings, labels)]
        return whole[0], whole[1]

    def _gathered(self, part: Tensor, sync_grads: bool = False) -> Tensor:
        """``[ranks, *]`` of what every rank has."""
        found = self.all_gather(part, sync_grads=sync_grads)
        assert isinstance(found, Tensor)
        return found

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collects embeddings; all metrics are of the whole set."""
        chips, labels = batch
        self._val.append((self(chips), labels))

    def on_validation_epoch_end(self) -> None:
        """Logs the figures of validation, all named val/.

        Of trained classes: loss and the signs of `distances` over fixed batches, mean_cosine, those of `retrieval`.
        Of held-out classes, whose numbers follow those of the trained ones: `novel_retrieval`.
        """
        embeddings, labels = self._validated()
        known = len(self.carried["classes"])
        trained = embeddings[labels < known], labels[labels < known]
        found = {
            **fixed_batch_means(*trained, self._figures, self.seed),
            "mean_cosine": float(mean_cosine(trained[0])),
            **retrieval(*trained),
            **novel_retrieval(embeddings, labels, known, self.seed),
        }
        for name, value in found.items():
            if not math.isnan(value):
                shown = name in ("loss", "recall_at_1", "novel_ap")
                self.log(f"val/{name}", value, prog_bar=shown, sync_dist=True, batch_size=len(labels))

    def _figures(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.criterion(embeddings, labels), **distances(embeddings, labels, self.margin)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Groups with their own learning rates: projection and head, backbone, and a loss's own parameters."""
        parts: dict[str, tuple[list[nn.Parameter], float]] = {
            "head": ([*self.embedder.projection.parameters(), *self.embedder.head.parameters()], 1.0),
            "backbone": (list(self.embedder.backbone.parameters()), self.backbone_lr_factor),
            "loss": (list(self.loss.parameters()), self.loss_lr_factor),
        }
        optimizer = self.optimizer([{"params": own, "name": name} for name, (own, _) in parts.items() if own])
        for group in optimizer.param_groups:
            group["lr"] *= parts[group["name"]][1]
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what search needs beside the weights."""
        checkpoint["siamese_sat"] = self.carried
