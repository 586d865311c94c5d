"""A deeper stage on a finer grid, without a second pass over the image: strides become dilation."""

from __future__ import annotations

import copy

from torch import nn

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STAGES, STRIDES

LAST = STAGES[-1]


class Finer(nn.Module):
    """A copy of a backbone whose last stage has a cell at every ``stride`` pixels instead of 32.

    The algorithme a trous (Holschneider et al. 1989; Chen et al. 2015, DeepLab): a strided convolution is computed at
    every place, and those after it skip as many cells as it would have left out. So each cell that the strided network
    has keeps its value, and the cells between are what it would give for the image shifted by so much. What is no
    longer strided costs 4 times as much per halving: of a ResNet50's arithmetic layer4 takes about a fifth and layer3
    a third, so 16 pixels cost about 1.6 of a pass and 8 pixels about 5.

    Args:
        backbone: as `Backbone`, BatchNorm folded or not; shared up to the first stage that changes.
        stride: 32, 16 or 8 pixels.

    Raises:
        InputError: another stride.
    """

    def __init__(self, backbone: nn.Module, stride: int) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise InputError(f"search.stride={stride} cannot be evaluated densely; give 8, 16 or 32.")
        parts, rate = [], 1
        for name in STAGES:
            part = getattr(backbone, name)
            if STRIDES[name] > stride:
                part = copy.deepcopy(part)
                rate = _dilated(part, rate)
            parts.append(part)
        self.stages = nn.Sequential(*parts)

    def forward(self, x: object) -> object:
        """``[N, 3, H, W]`` to ``[N, channels, ceil(H / stride), ceil(W / stride)]``."""
        return self.stages(x)


def _dilated(stage: nn.Module, rate: int) -> int:
    """Takes the strides out of a stage; its inputs lie ``rate`` cells apart. Returns the same of its outputs."""
    for block in stage.children():
        entering = rate
        # In the order in which they follow each other; the shortcut runs beside them.
        for conv in (m for name, m in sorted(block.named_children()) if name.startswith("conv")):
            assert isinstance(conv, nn.Conv2d)
            wide, jump = conv.kernel_size[0] > 1, conv.stride[0]
            conv.stride = (1, 1)
            if wide:
                conv.dilation = (rate, rate)
                conv.padding = (rate * (conv.kernel_size[0] // 2),) * 2
            rate *= jump
        shortcut = block.downsample
        if isinstance(shortcut, nn.Module):
            for conv in shortcut.modules():
                if isinstance(conv, nn.Conv2d):
                    conv.stride = (1, 1)
        assert rate % entering == 0
    return rate
