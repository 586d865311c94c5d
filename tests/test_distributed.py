from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from pytorch_metric_learning.losses import ProxyAnchorLoss, SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

from siamese_sat.data.datamodule import ChipDataModule
from siamese_sat.distributed import end_together, is_first, quoted, ranks, starts_processes
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import load_model
from siamese_sat.model.module import MetricLearner
from tests.model.conftest import RADIOMETRY, ROOT, config, make_labelled, tiny_embedder

BATCH, STEPS = 12, 1


class FrozenStatistics(MetricLearner):
    """Normalises by what it has: by its own batch each of two processes would differ from one with both."""

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.eval()


class Shared:
    """The batches of a process among ``count`` that share all of them; all of a step at once where there is one."""

    def __iter__(self) -> Iterator[list[int]]:
        rank, count = ranks()
        size = BATCH * 2 // count
        for step in range(STEPS):
            first = 2 * BATCH * step + rank * size
            yield list(range(first, first + size))

    def __len__(self) -> int:
        return STEPS


def learner(loss: nn.Module, miner: nn.Module | None) -> FrozenStatistics:
    torch.manual_seed(0)
    embedder = tiny_embedder()
    embedder.set_trainable(("layer4",))
    return FrozenStatistics(
        embedder=embedder, loss=loss, miner=miner, optimizer=functools.partial(torch.optim.SGD, lr=1.0),
        radiometry=RADIOMETRY, classes=["a", "b", "c"], chip={}, bands=[1, 2, 3, 4],
    )  # fmt: skip


def chips(count: int = 2 * BATCH * STEPS) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 4, 32, 32), torch.randint(0, 3, (count,)))


def trained(module: FrozenStatistics, folder: Path, devices: int) -> tuple[dict[str, Tensor], float]:
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, max_epochs=1, logger=False, enable_checkpointing=False, barebones=False,
        strategy=DDPStrategy(start_method="spawn", find_unused_parameters=True) if devices > 1 else "auto",
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(chips(), sampler=Shared(), batch_size=None))
    return module.state_dict(), float(trainer.callback_metrics["train/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triplet", "supcon", "proxy_anchor"])
@pytest.mark.filterwarnings("ignore")
def test_two_processes_learn_as_one_with_both_batches(name: str, tmp_path: Path) -> None:
    make = {
        "triplet": lambda: (TripletMarginLoss(margin=0.5, smooth_loss=True), BatchHardMiner()),
        "supcon": lambda: (SupConLoss(), None),
        "proxy_anchor": lambda: (ProxyAnchorLoss(num_classes=3, embedding_size=16), None),
    }[name]
    modules = []
    for _ in range(2):
        torch.manual_seed(2)  # proxies begin alike
        modules.append(learner(*make()))
    before = {k: v.clone() for k, v in modules[0].state_dict().items()}
    (one, loss), (two, shown) = (trained(m, tmp_path, n) for m, n in zip(modules, (1, 2), strict=True))
    assert shown == pytest.approx(loss, abs=1e-5), "the logged loss is that of all batches, not a multiple"
    # A rate of 1 and no momentum: what a weight has moved by in the one step is its gradient.
    learned = [k for k, v in one.items() if (v - before[k]).abs().max() > 1e-4]
    assert {"embedder.projection.0.weight", "embedder.head.0.weight"} <= set(learned), "nothing would be compared"
    assert ("loss.proxies" in learned) == (name == "proxy_anchor")
    for key in one:
        torch.testing.assert_close(two[key] - before[key], one[key] - before[key], atol=1e-6, rtol=1e-3, msg=key)
