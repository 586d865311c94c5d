"""An embedder made ready for inference: the same function, with less work."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from siamese_sat.model.embedder import Embedder


class DeployedEmbedder(nn.Module):
    """A copy of an embedder with BatchNorm folded into the convolutions, in one precision, channels last.

    Folded and stored in the precision of the computation, normalising and converting are no passes over memory of
    their own. The head and the unit length stay in fp32.

    Args:
        embedder: trained or not; it is not changed.
        device: where to compute.
        dtype: of projection and backbone.
    """

    def __init__(
        self, embedder: Embedder, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        own = copy.deepcopy(embedder).eval().requires_grad_(False)
        _fold(own.backbone)
        self.dtype = dtype
        self.projection = own.projection.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone = own.backbone.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = own.head.to(device)

    def forward(self, chips: Tensor) -> Tensor:
        """Normalised chips ``[N, C, S, S]`` to unit vectors ``[N, D]`` in fp32."""
        pooled = self.features(chips).float().mean(dim=(2, 3))
        return F.normalize(self.head(pooled), dim=1)

    def features(self, image: Tensor, until: str = "layer4") -> Tensor:
        """Feature map of a stage, in the precision of the computation."""
        x = image.to(self.dtype, memory_format=torch.channels_last)
        found: Tensor = self.backbone(self.projection(x), until)
        return found


def _fold(backbone: nn.Module) -> None:
    stem = backbone.stem
    assert isinstance(stem, nn.Sequential)
    stem[0], stem[1] = _folded(stem[0], stem[1]), nn.Identity()
    for block in backbone.modules():
        if not isinstance(block, BasicBlock | Bottleneck):
            continue
        for number in (1, 2, 3):
            conv, norm = getattr(block, f"conv{number}", None), getattr(block, f"bn{number}", None)
            if conv is not None and norm is not None:
                setattr(block, f"conv{number}", _folded(conv, norm))
                setattr(block, f"bn{number}", nn.Identity())
        if block.downsample is not None:
            conv, norm = block.downsample[0], block.downsample[1]
            block.downsample = nn.Sequential(_folded(conv, norm))


def _folded(conv: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(conv, norm)
