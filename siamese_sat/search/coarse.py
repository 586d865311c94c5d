"""Where a class may be: coarsely everywhere, finely only where that promises, so that classes cost little.

Cells are pooled two by two and kernels with them: a sixteenth of the products. A coarse cell stands for four places;
those that look promising are compared in full. What comes out are peaks of the full comparison; a peak may be missed
where pooling hides it, or beside a better one a few cells away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.search.consensus import Consensus
from siamese_sat.search.peak import patches_at, vertex

# A coarse cell is looked into where its score is this part of what a peak must have: pooling blurs what is small.
PROMISING = 0.6
# And this part of its neighbours' best.
NEAR_TOP = 0.75
# Cells on either side of a place that the coarse grid needs beyond a template's own.
AROUND = 2
# Windows compared at a time.
BATCH = 512
# A window is compared at 16 places for the 4 that it stands for, and is copied first: where more than this part of all
# coarse cells are looked into, the whole map costs less.
MANY = 0.2


@dataclass(frozen=True)
class Peaks:
    """Places that match better than all their neighbours.

    Attributes:
        y: ``[n]`` row of the first cell of the patch that was compared.
        x: ``[n]`` likewise column.
        dy: ``[n]`` rows, within half a cell, from there to the top of a parabola through the neighbours.
        dx: ``[n]`` likewise columns.
    """

    y: Tensor
    x: Tensor
    dy: Tensor
    dx: Tensor

    def __len__(self) -> int:
        return len(self.y)


def find_peaks(
    cells: Tensor,
    wanted: Sequence[Consensus],
    least: Sequence[float],
    valid: Tensor,
    margin: int,
    most: int,
    dtype: torch.dtype,
) -> list[Peaks]:
    """Local maxima of the cosine with what each class's exemplars share, in its best view.

    Args:
        cells: ``[D, h + 2 * margin, w + 2 * margin]``, whitened.
        wanted: of the classes; their kernels are of one size.
        least: cosine of a peak, class by class; with 0 or less every place is compared in full.
        valid: ``[h, w]`` where a peak may be.
        margin: cells beyond the tile on either side: half a template and `AROUND` at least. ``h`` and ``w`` begin at
            an even cell of the scene, or a tile's border would move the coarse grid.
        most: coarse cells looked into for each class, at most, the most promising.
        dtype: in which cells and kernels are multiplied.
    """
    size = wanted[0].kernels.shape[-1]
    height, width = valid.shape
    spare = margin - size // 2 - AROUND
    if spare < 0:
        raise ValueError(f"margin {margin} is less than {size // 2 + AROUND}")
    cells = cells.to(dtype)
    # An odd tile ends within a coarse cell.
    grid = F.pad(cells, (0, width % 2, 0, height % 2))[None, :, spare:, spare:]
    if spare:
        grid = grid[..., : grid.shape[2] - spare, : grid.shape[3] - spare]
    pooled = F.avg_pool2d(grid, 2)
    kernels, weights = (torch.cat(parts) for parts in zip(*(_coarse(c) for c in wanted), strict=True))
    found = F.conv2d(pooled, kernels.to(dtype))[0].float()
    weighted = F.conv2d(pooled.float().square().sum(1, keepdim=True), weights)[0]
    scores = [s.amax(0) for s in (found / weighted.clamp(min=1e-12).sqrt()).split([len(c.kernels) for c in wanted])]
    inside = F.max_pool2d(valid[None].float(), 2, ceil_mode=True)[0] > 0
    # Once for all: windows overlap, and so do those of the classes.
    energy = cells.float().square().sum(0, keepdim=True)
    return [
        _fine(cells, energy, one, score, limit, inside, valid, margin, most)
        for one, score, limit in zip(wanted, scores, least, strict=True)
    ]


def _coarse(consensus: Consensus) -> tuple[Tensor, Tensor]:
    """Kernels ``[views, D, m, m]`` and weights ``[views, 1, m, m]`` for pooled cells.

    The mean over the four places that a coarse cell stands for; as long as the full ones, so that scores compare.
    """
    full = consensus.kernels
    kernels, weights = (
        F.avg_pool2d(F.avg_pool2d(F.pad(k, (1, 1, 1, 1)), 2, stride=1), 2) for k in (full, consensus.weights[:, None])
    )
    length, own = (k.flatten(1).norm(dim=1)[:, None, None, None] for k in (full, kernels))
    return kernels * (length / own.clamp(min=1e-12)), weights


def _fine(
    cells: Tensor,
    energy: Tensor,
    consensus: Consensus,
    coarse: Tensor,
    least: float,
    inside: Tensor,
    valid: Tensor,
    margin: int,
    most: int,
) -> Peaks:
    """Peaks of the full comparison within promising coarse cells; ``coarse`` has one cell more on all sides."""
    inner = coarse[1:-1, 1:-1]
    top = F.max_pool2d(coarse[None, None], 3, stride=1)[0, 0]
    promising = inside.to(coarse.device)
    if least > 0:
        promising = promising & (inner >= torch.clamp(NEAR_TOP * top, min=PROMISING * least))
    row, column = torch.nonzero(promising, as_tuple=True)
    if len(row) > most:
        best = inner[row, column].topk(most).indices.sort().values
        row, column = row[best], column[best]
    size = consensus.kernels.shape[-1]
    # The first cell of the patch round the first of the four places, and one more before it.
    first = margin - size // 2
    y, x = first + 2 * row, first + 2 * column
    places = _of_map if len(row) > MANY * inner.numel() else _of_windows
    found = places(cells, energy, consensus, y, x, least)
    row, column = found.y - first, found.x - first
    height, width = valid.shape
    keep = (row < height) & (column < width)
    keep &= valid.to(row.device)[row.clamp(max=height - 1), column.clamp(max=width - 1)]
    return Peaks(found.y[keep], found.x[keep], found.dy[keep], found.dx[keep])


def _of_windows(cells: Tensor, energy: Tensor, consensus: Consensus, y: Tensor, x: Tensor, least: float) -> Peaks:
    """Peaks among the four places of each coarse cell, the patch round whose first begins at ``y`` and ``x``."""
    size = consensus.kernels.shape[-1]
    parts: list[tuple[Tensor, ...]] = [(y[:0], x[:0], y[:0].float(), x[:0].float())]
    for at in range(0, len(y), BATCH):
        here_y, here_x = y[at : at + BATCH], x[at : at + BATCH]
        windows, energies = (patches_at(m, here_y - 1, here_x - 1, size + 3) for m in (cells, energy))
        score = _cosine(windows, energies, consensus)
        peak = score[:, 1:3, 1:3] >= F.max_pool2d(score[:, None], 3, stride=1)[:, 0]
        number, down, right = torch.nonzero(peak & (score[:, 1:3, 1:3] >= least), as_tuple=True)
        # One window below the other makes them one map; what is read of it stays within a window.
        dy, dx = vertex(score.flatten(0, 1), 4 * number + 1 + down, 1 + right)
        parts.append((here_y[number] + down, here_x[number] + right, dy, dx))
    return Peaks(*(torch.cat(p) for p in zip(*parts, strict=True)))


def _of_map(cells: Tensor, energy: Tensor, consensus: Consensus, y: Tensor, x: Tensor, least: float) -> Peaks:
    """The same from the whole map."""
    score = _cosine(cells[None], energy[None], consensus)[0]
    peak = score >= F.max_pool2d(score[None, None], 3, stride=1, padding=1)[0, 0]
    asked = torch.zeros_like(peak)
    for down in (0, 1):
        for right in (0, 1):
            asked[y + down, x + right] = True
    row, column = torch.nonzero(peak & asked & (score >= least), as_tuple=True)
    dy, dx = vertex(score, row, column)
    return Peaks(row, column, dy, dx)


def _cosine(windows: Tensor, energy: Tensor, consensus: Consensus) -> Tensor:
    """Best view's cosine ``[n, h - size + 1, w - size + 1]`` at the places of windows.

    Args:
        windows: ``[n, D, h, w]``.
        energy: ``[n, 1, h, w]`` of their cells.
        consensus: of the class.
    """
    found = F.conv2d(windows, consensus.kernels.to(windows.dtype)).float()
    weighted = F.conv2d(energy, consensus.weights[:, None])
    return (found / weighted.clamp(min=1e-12).sqrt()).amax(1)
