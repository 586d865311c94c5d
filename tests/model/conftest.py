"""A labelled scene, a ResNet of a few thousand weights, and settings for a run of a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock, ResNet

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.model.embedder import Embedder, EmbedderSpec
from siamese_sat.synthetic import make_scene, write_labels, write_scene

ROOT = Path(__file__).resolve().parents[2]
BANDS = ("B", "G", "R", "NIR")
CLASSES = ("storage tank", "swimming pool", "tennis court")
RADIOMETRY = Radiometry(BANDS, 10000.0, (0.1, 0.1, 0.1, 0.2), (0.05, 0.05, 0.05, 0.1))


class TinyResNet(ResNet):
    """A torchvision ResNet in all but its width: checkpoints of 200 KB and steps of milliseconds."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.inplanes = 8
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.layer1 = self._make_layer(BasicBlock, 8, 1)
        self.layer2 = self._make_layer(BasicBlock, 16, 1, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 24, 1, stride=2)
        self.layer4 = self._make_layer(BasicBlock, 32, 1, stride=2)
        self.fc = nn.Linear(32, 10)


@register_model(name="resnet_tiny")
def resnet_tiny(weights: None = None, progress: bool = True) -> ResNet:
    """Known to torchvision by name, hence to `Backbone`."""
    return TinyResNet()


def tiny_embedder(seed: int = 0, embedding_dim: int = 16) -> Embedder:
    """The same weights for the same seed."""
    torch.manual_seed(seed)
    return Embedder(EmbedderSpec(BANDS, backbone="resnet_tiny", hidden_dim=24, embedding_dim=embedding_dim))


def make_labelled(folder: Path, size: int = 512, per_class: int = 12) -> Path:
    """Writes one scene with its labels beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, objects = make_scene(np.random.default_rng(1), size, size, CLASSES, per_class, 10)
    write_scene(folder / "town.tif", pixels)
    write_labels(folder / "town.json", objects)
    return folder


def settings(scenes: Path, out: Path, cache: Path, *more: str) -> list[str]:
    """Overrides for a tiny run of 2 + 2 epochs of 3 batches."""
    return [
        f"data.scenes={scenes}",
        "data.chip.size=32",
        "data.val_fraction=0.4",
        "model.weights=null",
        "model.backbone=resnet_tiny",
        "model.hidden_dim=24",
        "model.embedding_dim=16",
        "optimizer.lr=1e-3",
        "sampler.batches_per_epoch=3",
        "callbacks.finetune.warmup_epochs=2",
        "callbacks.progress=null",
        "+trainer.enable_progress_bar=false",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.max_epochs=4",
        f"paths.output_dir={out}",
        f"paths.cache_dir={cache}",
        *more,
    ]


def config(scenes: Path, out: Path, *more: str) -> DictConfig:
    """Composes such a run; chips are cached beside the scenes' folder."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", settings(scenes, out, scenes.parent / "cache", *more))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small mostly wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one labelled scene."""
    return make_labelled(tmp_path_factory.mktemp("labelled") / "scenes")
