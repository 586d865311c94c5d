"""Augmentation of a whole batch, on the device it lies on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VIEWS = 8


def dihedral(batch: Tensor, view: int) -> Tensor:
    """One of the eight views of a square: ``view % 4`` quarter turns, mirrored first from 4 on.

    Args:
        batch: ``[..., H, W]``.
        view: 0 to 7; 0 changes nothing.
    """
    mirrored = batch.flip(-1) if view >= 4 else batch
    return torch.rot90(mirrored, view % 4, (-2, -1))


def _each_its_view(batch: Tensor, views: Tensor) -> Tensor:
    """`dihedral` with a view for each chip; nothing depends on how many have which, for which a GPU would wait.

    Args:
        batch: ``[B, C, S, S]``.
        views: ``[B, 1, 1, 1]``.
    """
    turns = views % 4
    # A quarter turn mirrors, then transposes; three do the same after half a turn.
    across = (views >= 4) ^ (turns == 1) ^ (turns == 2)
    batch = torch.where(across, batch.flip(-1), batch)
    batch = torch.where(turns >= 2, batch.flip(-2), batch)
    return torch.where(turns % 2 == 0, batch, batch.transpose(-2, -1))


@dataclass(frozen=True)
class Augment:
    """Random views and radiometry; each part is switched off by False or 0.

    Attributes:
        dihedral: one of the eight flips and quarter turns per chip.
        gain: each band is multiplied by 1 +- up to this.
        offset: each band is shifted by up to this many of its standard deviations.
        noise: standard deviation of Gaussian noise, in the bands' standard deviations.
    """

    dihedral: bool = True
    gain: float = 0.1
    offset: float = 0.1
    noise: float = 0.02

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augments normalised chips ``[B, C, S, S]``; the generator lies on their device. The input is kept."""
        count, bands = batch.shape[:2]
        if self.dihedral:
            views = torch.randint(VIEWS, (count,), generator=generator, device=batch.device)
            batch = _each_its_view(batch, views[:, None, None, None])
        if self.gain or self.offset:
            draw = torch.rand(2, count, bands, 1, 1, generator=generator, device=batch.device) * 2 - 1
            batch = torch.addcmul(self.offset * draw[1], batch, 1 + self.gain * draw[0])
        if self.noise:
            drawn = torch.randn(batch.shape, generator=generator, device=batch.device, dtype=batch.dtype)
            batch = batch + self.noise * drawn
        return batch
