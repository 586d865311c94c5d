"""Projection, backbone, head, unit length: chips in, embeddings out. A plain module, no training in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STAGES, Backbone, Variant

# How much of the bands beyond red, green and blue passes at first: enough for a gradient, too little to disturb.
OTHER_BANDS = 0.1


@dataclass(frozen=True)
class EmbedderSpec:
    """Everything an embedder is built from, in plain values, as a checkpoint carries it.

    Attributes:
        band_names: of the input, in order.
        backbone: torchvision ResNet.
        variant: stride placement, see `Backbone`.
        hidden_dim: between the head's two layers.
        embedding_dim: of the embeddings.
        projection_init: ``rgb`` passes red, green and blue to the channels where ImageNet weights expect them and a
            little of the others; ``random`` is the framework's own.
        projection_norm: BatchNorm and ReLU after the projection, as the original has.
    """

    band_names: tuple[str, ...]
    backbone: str = "resnet50"
    variant: Variant = "v1.5"
    hidden_dim: int = 512
    embedding_dim: int = 128
    projection_init: Literal["rgb", "random"] = "rgb"
    projection_norm: bool = False

    def __post_init__(self) -> None:
        if self.projection_init not in ("rgb", "random"):
            raise InputError(f"model.projection_init={self.projection_init!r} is neither rgb nor random.")
        if min(self.hidden_dim, self.embedding_dim) < 1:
            raise InputError("model.hidden_dim and model.embedding_dim must be 1 or more.")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and values."""
        return {**asdict(self), "band_names": list(self.band_names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbedderSpec:
        """The reverse of `to_dict`."""
        return cls(**{**values, "band_names": tuple(values["band_names"])})


class Embedder(nn.Module):
    """Maps normalised chips to unit vectors.

    Args:
        spec: what to build.
        weights: of the backbone, see `Backbone`.
    """

    def __init__(self, spec: EmbedderSpec, weights: str | None = None) -> None:
        super().__init__()
        self.spec = spec
        bands = len(spec.band_names)
        self.projection = nn.Sequential(nn.Conv2d(bands, 3, 1))
        if spec.projection_init == "rgb":
            _pass_rgb(self.projection[0], spec.band_names)
        if spec.projection_norm:
            self.projection.extend([nn.BatchNorm2d(3), nn.ReLU()])
        self.backbone = Backbone(spec.backbone, spec.variant, weights)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.width, spec.hidden_dim),
            nn.BatchNorm1d(spec.hidden_dim),
            nn.ReLU(),
            nn.Linear(spec.hidden_dim, spec.embedding_dim),
        )
        self._trainable, self._keep_statistics = frozenset(STAGES), False

    def forward(self, x: Tensor) -> Tensor:
        """Embeds normalised chips ``[N, C, S, S]``: ``[N, embedding_dim]`` float32 of unit length."""
        pooled = self.features(x).mean(dim=(2, 3))
        return F.normalize(self.head(pooled).float(), dim=1)

    def features(self, x: Tensor, until: str = "layer4") -> Tensor:
        """The feature map of a backbone stage, ``[N, channels, H / stride, W / stride]``."""
        features: Tensor = self.backbone(self.projection(x), until)
        return features

    def further(self, found: Tensor, until: str, after: str) -> Tensor:
        """The feature map of a stage, of what `features` gave of the stage ``after``."""
        features: Tensor = self.backbone(found, until, after)
        return features

    def set_trainable(self, stages: Iterable[str], keep_statistics: bool = False) -> None:
        """Lets these backbone stages learn and freezes the others, their BatchNorm statistics included.

        Args:
            stages: of the backbone; projection and head always learn.
            keep_statistics: whether the BatchNorm of these stages keeps, and normalises by, the mean and variance that
                it has; its scale and shift learn either way.

        Raises:
            InputError: a name is no stage.
        """
        chosen = frozenset(stages)
        if not chosen <= set(STAGES):
            raise InputError(
                f"{sorted(chosen - set(STAGES))[0]!r} is no backbone stage; stages are {', '.join(STAGES)}."
            )
        self._trainable, self._keep_statistics = chosen, keep_statistics
        for stage in STAGES:
            getattr(self.backbone, stage).requires_grad_(stage in chosen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for BatchNorm that is to keep its statistics, in frozen stages or in all."""
        super().train(mode)
        for stage in STAGES:
            part = getattr(self.backbone, stage)
            if stage not in self._trainable:
                part.eval()
            elif self._keep_statistics:
                for module in part.modules():
                    if isinstance(module, _BatchNorm):  # the base of SyncBatchNorm too
                        module.eval()
        return self


def build_embedder(
    band_names: Sequence[str],
    backbone: str = "resnet50",
    variant: str = "v1.5",
    weights: str | None = "IMAGENET1K_V1",
    hidden_dim: int = 512,
    embedding_dim: int = 128,
    projection_init: str = "rgb",
    projection_norm: bool = False,
) -> Embedder:
    """An embedder for these bands; the other arguments are those of `EmbedderSpec` and `Backbone`."""
    spec = EmbedderSpec.from_dict(
        {
            "band_names": list(band_names),
            "backbone": backbone,
            "variant": variant,
            "hidden_dim": hidden_dim,
            "embedding_dim": embedding_dim,
            "projection_init": projection_init,
            "projection_norm": projection_norm,
        }
    )
    return Embedder(spec, weights)


def _pass_rgb(projection: nn.Module, names: Sequence[str]) -> None:
    assert isinstance(projection, nn.Conv2d)
    weight = torch.full((3, len(names)), OTHER_BANDS / 3)
    colours = ("R", "G", "B")
    if all(c in names for c in colours):
        for band in colours:
            weight[:, names.index(band)] = 0
        for channel, band in enumerate(colours):
            weight[channel, names.index(band)] = 1
    else:  # one band, or none of them a colour: what there is goes to all three alike
        weight.fill_(1 / len(names))
    with torch.no_grad():
        projection.weight.copy_(weight[:, :, None, None])
        if projection.bias is not None:
            projection.bias.zero_()
