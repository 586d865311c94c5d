"""Where a score map has its peaks, and what lies there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def vertex(score: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Offset in cells, within half a cell, of the parabola's top through each peak and its neighbours, per axis."""
    found = []
    for before, after in ((score[y - 1, x], score[y + 1, x]), (score[y, x - 1], score[y, x + 1])):
        bend = 2 * score[y, x] - before - after
        found.append(((after - before) / (2 * bend.clamp(min=1e-9))).clamp(-0.5, 0.5))
    return found[0], found[1]


def patches_at(cells: Tensor, y: Tensor, x: Tensor, size: int) -> Tensor:
    """Patches ``[N, D, size, size]`` of cells ``[D, H, W]`` with their first row and column at ``y`` and ``x``."""
    offset = torch.arange(size, device=cells.device)
    rows, columns = y[:, None, None] + offset[:, None], x[:, None, None] + offset
    # Cells lie channel by channel next to each other where the network keeps them so: whole cells are copied.
    return cells.permute(1, 2, 0)[rows, columns].permute(0, 3, 1, 2)


def patches_between(cells: Tensor, y: Tensor, x: Tensor, size: int) -> Tensor:
    """Patches ``[N, D, size, size]`` of cells ``[D, H, W]`` round fractional rows and columns, bilinear.

    Beyond the map the nearest cell stands.
    """
    offset = torch.arange(size, device=cells.device) - size // 2
    rows, columns = (c.float()[:, None] + offset for c in (y, x))
    height, width = cells.shape[1:]
    # grid_sample wants -1..1 from the first cell's centre to the last's.
    rows, columns = (c / max(n - 1, 1) * 2 - 1 for c, n in ((rows, height), (columns, width)))
    places = torch.stack(
        [columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], dim=-1
    ).reshape(1, -1, size, 2)
    found = F.grid_sample(cells[None], places, mode="bilinear", padding_mode="border", align_corners=True)[0]
    return found.reshape(len(cells), -1, size, size).transpose(0, 1)
