"""The ResNet between the band projection and the head, and where its weights come from."""

from __future__ import annotations

import logging
import math
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from siamese_sat.errors import InputError

log = logging.getLogger(__name__)

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
STRIDES = {"stem": 4, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
DOWNLOAD_TIMEOUT_S = 10.0
Variant = Literal["v1", "v1.5"]


class Backbone(nn.Module):
    """A torchvision ResNet cut into its stages, without the classifier.

    Args:
        name: any torchvision ResNet ("resnet18" ... "wide_resnet101_2").
        variant: where a bottleneck's stride 2 sits: ``v1.5`` in its 3x3 convolution as torchvision has it, ``v1`` in
            its first 1x1 as in He et al. 2015 and Keras. Weights of one work much worse in the other.
        weights: a torchvision weights name ("IMAGENET1K_V1", "DEFAULT"), a .pth or .safetensors file, or None for
            random initialisation.

    Attributes:
        width: channels after the last stage.
        pretrained: whether weights were given, of some stages at least.

    Raises:
        InputError: unknown name, or weights that cannot be had.
    """

    def __init__(self, name: str = "resnet50", variant: Variant = "v1.5", weights: str | None = None) -> None:
        super().__init__()
        if name not in models.list_models(include=["resnet*", "resnext*", "wide_resnet*"]):
            raise InputError(f"model.backbone={name!r} is no torchvision ResNet; try resnet50 or resnet18.")
        if variant not in ("v1", "v1.5"):
            raise InputError(f"model.variant={variant!r} is neither v1 nor v1.5.")
        net = models.get_model(name, weights=None)
        if variant == "v1":
            _to_v1(net)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.width: int = net.fc.in_features
        self.pretrained = weights is not None
        if weights is not None:
            self._load(name, str(weights))

    def forward(self, x: Tensor, until: str = "layer4", after: str | None = None) -> Tensor:
        """The feature map of a stage.

        Args:
            x: ``[N, 3, H, W]``, or what the stage ``after`` gave.
            until: the stage to stop after.
            after: the stage to go on from.

        Returns:
            ``[N, channels, ceil(H / stride), ceil(W / stride)]``, stride as in ``STRIDES``.
        """
        for stage in STAGES[0 if after is None else STAGES.index(after) + 1 :]:
            x = getattr(self, stage)(x)
            if stage == until:
                return x
        raise ValueError(f"no stage {until!r}")

    def reach(self, stage: str) -> int:
        """How many input pixels to either side a cell of the stage sees: half its receptive field."""
        field, jump = 1, 1
        for name in STAGES[: STAGES.index(stage) + 1]:
            for block in getattr(self, name):
                # Within a block the convolutions follow each other; its 1x1 shortcut sees no more.
                for layer in [block, *block.children()]:
                    if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                        kernel, stride = (
                            v if isinstance(v, int) else int(v[0]) for v in (layer.kernel_size, layer.stride)
                        )
                        field += (kernel - 1) * jump
                        jump *= stride
        return math.ceil(field / 2)

    def _load(self, name: str, weights: str) -> None:
        state = _read_weights(name, weights)
        own = self.state_dict()
        renamed = {_stage_key(k): v for k, v in state.items()}
        wrong = [k for k, v in renamed.items() if k in own and own[k].shape != v.shape]
        if wrong:
            raise InputError(f"{weights}: {wrong[0]} does not fit {name}; give weights of this backbone.")
        fitting = {k: v for k, v in renamed.items() if k in own}
        if not fitting:
            raise InputError(f"{weights} holds no weight of {name} (torchvision's names are expected).")
        self.load_state_dict(fitting, strict=False)
        lacking = Counter(k.split(".")[0] for k in own if k not in fitting and "num_batches" not in k)
        if lacking:
            log.warning(
                "%s lacks %s: random there until trained.",
                weights, ", ".join(f"{stage} ({n} tensors)" for stage, n in lacking.items()),
            )  # fmt: skip


def _to_v1(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, models.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.001e-5  # as Keras has it


def _stage_key(key: str) -> str:
    for prefix in ("state_dict.", "module.", "model.", "embedder.", "backbone.", "encoder."):
        key = key.removeprefix(prefix)
    for old, new in (("conv1.", "stem.0."), ("bn1.", "stem.1.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _read_weights(name: str, weights: str) -> Mapping[str, Tensor]:
    path = Path(weights).expanduser()
    if path.suffix in (".pth", ".pt", ".safetensors", ".ckpt", ".bin") or path.is_file():
        return _read_file(path)
    try:
        entry = models.get_model_weights(name)[weights]
    except KeyError as error:
        names = ", ".join(w.name for w in models.get_model_weights(name))
        raise InputError(
            f"model.weights={weights!r} is neither a file nor torchvision weights of {name} ({names}); give one of "
            f"these, a .pth or .safetensors file, or null."
        ) from error
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        state: Mapping[str, Tensor] = entry.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"The weights {name}/{entry.name} could not be downloaded ({error}); give a file you have with "
            f"model.weights=<file.pth or .safetensors>, or start at random with model.weights=null."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return state


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; check model.weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no weights file
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}); model.weights takes a .pth or .safetensors "
            "file of torchvision's names, or null to start at random."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}
