"""An embedder made ready for inference: the same function, with less work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.model.embedder import Embedder
from siamese_sat.model.runtime import Runner, pick_runtime

# Rows of an image that a CPU mixes at once: what stands between stays in its caches.
ROWS = 64


class DeployedEmbedder(nn.Module):
    """A copy of an embedder with BatchNorm folded into the convolutions, in one precision, channels last.

    Folded and stored in the precision of the computation, normalising and converting are no passes over memory of
    their own. So is the head's first layer, which in fp32 would take a thirtieth of a dense search's time; the second
    and the unit length stay in fp32.

    Args:
        embedder: trained or not; it is not changed.
        device: where to compute.
        dtype: of projection, backbone and the head's first layer.
        runtime: what runs the backbone, see `pick_runtime`.

    Attributes:
        runtime: what runs it here, see `pick_runtime`.

    Raises:
        InputError: see `pick_runtime`.
    """

    def __init__(
        self,
        embedder: Embedder,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        runtime: str = "eager",
    ) -> None:
        super().__init__()
        self.runtime = pick_runtime(runtime, torch.device(device), dtype)
        # As asked, not as picked: it may be sent to where the other thing holds.
        self._asked, self._runners = runtime, dict[Hashable, Runner]()
        own = copy.deepcopy(embedder).eval().requires_grad_(False)
        _fold(own.backbone)
        self.dtype = dtype
        self.mixing: Tensor | None
        self.shift: Tensor | None
        self.rectified, weight, shift = _mixing(own.projection)
        self.register_buffer("mixing", weight.to(device) if weight is not None else None)
        self.register_buffer("shift", shift.to(device) if shift is not None else None)
        self.projection = own.projection.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone = own.backbone.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        hidden, rest = _wide_layer(own.head)
        self.hidden = hidden.to(device, dtype) if hidden is not None else None
        self.head = rest.to(device).eval()

    def forward(self, chips: Tensor) -> Tensor:
        """Normalised chips ``[N, C, S, S]`` to unit vectors ``[N, D]`` in fp32."""
        return self.embed_pooled(self.features(chips).float().mean(dim=(2, 3)))

    @property
    def projects(self) -> bool:
        """Whether `project` and `embed_projected` can be used: the projection is a mix of bands."""
        return self.mixing is not None

    def project(self, stored: Tensor, radiometry: Radiometry, level: tuple[int, int] | None = None) -> Tensor:
        """Raster values to what the backbone takes, in one affine map: scale, mean, deviation and the mix of bands.

        The map is linear, and so is resizing, whose weights sum to 1: their order changes rounding only.

        Args:
            stored: ``[C, H, W]`` of any type, on the device.
            radiometry: of the scene.
            level: height and width to resize to.

        Returns:
            ``[1, 3, height, width]`` in the precision of the computation, channels last.
        """
        assert self.mixing is not None and self.shift is not None
        gain, offset = (v.flatten(1) for v in radiometry.affine(stored.device))
        weight, bias = self.mixing * gain.T, torch.addmm(self.shift, self.mixing, offset)
        height, width = stored.shape[1:]
        resized = level is not None and tuple(level) != (height, width)
        # Where nothing is resized, straight to where and as the backbone takes it.
        dtype = torch.float32 if resized else self.dtype
        form = torch.contiguous_format if resized else torch.channels_last
        size = (1, len(weight), height, width)
        mixed = torch.empty(size, dtype=dtype, device=stored.device, memory_format=form)
        rows = ROWS if stored.device.type == "cpu" else height
        for y in range(0, height, rows):
            part = stored[:, y : y + rows]
            values = part.to(torch.float32).flatten(1)
            mixed[0, :, y : y + rows] = torch.addmm(bias, weight, values).view(-1, *part.shape[1:])
        if level is not None:
            mixed = resize(mixed, *level)
        if self.rectified:
            mixed = mixed.relu_()
        return mixed.to(self.dtype, memory_format=torch.channels_last)

    def embed_projected(self, projected: Tensor) -> Tensor:
        """What `project` gave, cut into chips ``[N, 3, S, S]``, to unit vectors ``[N, D]`` in fp32."""
        return self.embed_pooled(self._stages("layer4")(projected).float().mean(dim=(2, 3)))

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Means of the last stage's cells ``[N, channels]`` in fp32 to unit vectors ``[N, D]`` in fp32."""
        if self.hidden is not None:
            pooled = self.hidden(pooled.to(self.dtype)).float()
        return F.normalize(self.head(pooled), dim=1)

    def features(self, image: Tensor, until: str = "layer4") -> Tensor:
        """Feature map of a stage, in the precision of the computation."""
        x = image.to(self.dtype, memory_format=torch.channels_last)
        return self._stages(until)(self.projection(x))

    def further(self, found: Tensor, until: str, after: str) -> Tensor:
        """Feature map of a stage, of what `features` gave of the stage ``after``."""
        return self._stages(until, after)(found)

    def runner(self, name: Hashable, make: Callable[[], nn.Module], batches: bool = False) -> Runner:
        """Runs another network, of this one's parts, as this one is run; compiled once, whoever asks for it.

        Args:
            name: of the network.
            make: makes it, when it is first asked for.
            batches: whether it runs over batches of windows, see `Runner`.
        """
        if name not in self._runners:
            self._runners[name] = Runner(make(), self._asked, self.dtype, batches)
        return self._runners[name]

    def _stages(self, until: str, after: str | None = None) -> Runner:
        whole = until == "layer4" and after is None
        return self.runner((until, after), lambda: _Stages(self.backbone, until, after), whole)


class _Stages(nn.Module):
    """Some of a backbone's stages, as a function of one tensor."""

    def __init__(self, backbone: nn.Module, until: str, after: str | None) -> None:
        super().__init__()
        self.backbone, self.until, self.after = backbone, until, after

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.backbone(x, self.until, self.after)
        return found


def _mixing(projection: nn.Module) -> tuple[bool, Tensor | None, Tensor | None]:
    """Whether a projection ends in a ReLU, its weights ``[3, C]`` and its shift ``[3, 1]``; None where it is no mix."""
    parts = list(projection.children())
    if not parts or not isinstance(parts[0], nn.Conv2d):
        return False, None, None
    conv = parts[0] if len(parts) == 1 else _folded(parts[0], parts[1])
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    return len(parts) > 1, conv.weight.detach().float().flatten(1), conv.bias.detach().float()[:, None]


def _wide_layer(head: nn.Module) -> tuple[nn.Linear | None, nn.Module]:
    """A head's first layer, its BatchNorm folded in, and what follows; None where the head is none of `Embedder`'s."""
    parts = list(head.children())
    if len(parts) < 2 or not isinstance(parts[0], nn.Linear) or not isinstance(parts[1], nn.BatchNorm1d):
        return None, head
    return fuse_linear_bn_eval(parts[0], parts[1]), nn.Sequential(*parts[2:])


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
