from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.search.peak import patches_at, patches_between, vertex


def score_of(peaks: dict[tuple[int, int], float], height: int = 6, width: int = 8) -> Tensor:
    """``[h + 2, w + 2]`` of 0, and the peaks counted from -1."""
    score = torch.zeros(height + 2, width + 2)
    for (y, x), value in peaks.items():
        score[y + 1, x + 1] = value
    return score


@pytest.mark.parametrize(("dy", "dx"), [(0.0, 0.0), (0.3, -0.2), (-0.45, 0.5), (0.1, 0.4)])
def test_the_top_of_a_parabola(dy: float, dx: float) -> None:
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    score = 0.8 - 0.03 * (rows - 5 - dy) ** 2 - 0.01 * (columns - 2 - dx) ** 2
    found = vertex(score, torch.tensor([5]), torch.tensor([2]))
    assert [float(v) for v in found] == pytest.approx([dy, dx], abs=1e-4)


def test_offsets_of_many_peaks_stay_within_their_cells() -> None:
    score = F.avg_pool2d(torch.randn(1, 42, 42, generator=torch.Generator().manual_seed(1)), 3, stride=1)[0]
    inner = score[1:-1, 1:-1]
    y, x = torch.nonzero(inner >= F.max_pool2d(score[None, None], 3, stride=1)[0, 0], as_tuple=True)
    dy, dx = vertex(score, y + 1, x + 1)
    assert len(y) > 40
    assert float(torch.cat([dy, dx]).abs().max()) <= 0.5
    assert float(dy.std()) > 0.05
    turned = vertex(score.T.contiguous(), x + 1, y + 1)
    torch.testing.assert_close(turned, (dx, dy))


def test_a_plateau_has_its_top_in_the_middle() -> None:
    score = score_of({(2, 3): 0.5, (2, 4): 0.5})
    dy, dx = vertex(score, torch.tensor([3, 3]), torch.tensor([4, 5]))
    torch.testing.assert_close(dy, torch.zeros(2))
    torch.testing.assert_close(dx, torch.tensor([0.5, -0.5]))
    flat = vertex(torch.ones(3, 3), torch.tensor([1]), torch.tensor([1]))
    assert [float(v) for v in flat] == [0, 0]


def test_patches_lie_where_they_were_cut() -> None:
    cells = torch.arange(2 * 9 * 11.0).reshape(2, 9, 11)
    y, x = torch.tensor([0, 4, 6]), torch.tensor([8, 0, 5])
    found = patches_at(cells, y, x, 3)
    assert found.shape == (3, 2, 3, 3)
    for one, row, column in zip(found, y.tolist(), x.tolist(), strict=True):
        assert torch.equal(one, cells[:, row : row + 3, column : column + 3])
    assert patches_at(cells, y[:0], x[:0], 3).shape == (0, 2, 3, 3)


def test_patches_between_are_patches_at_whole_places() -> None:
    cells = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(2))
    y, x = torch.tensor([0, 4, 6]), torch.tensor([8, 0, 5])
    torch.testing.assert_close(patches_between(cells, y + 1.0, x + 1.0, 3), patches_at(cells, y, x, 3))
    assert patches_between(cells, y[:0], x[:0], 3).shape == (0, 3, 3, 3)


def test_patches_between_interpolate() -> None:
    cells = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(2))
    (found,) = patches_between(cells, torch.tensor([4.25]), torch.tensor([5.5]), 3)
    upper, lower = ((cells[:, r : r + 3, 4:7] + cells[:, r : r + 3, 5:8]) / 2 for r in (3, 4))
    torch.testing.assert_close(found, 0.75 * upper + 0.25 * lower)


@pytest.mark.parametrize(("height", "width"), [(4, 5), (1, 5), (1, 1)])
def test_patches_between_beyond_the_map_are_the_nearest_cell(height: int, width: int) -> None:
    cells = torch.randn(2, height, width, generator=torch.Generator().manual_seed(3))
    (found,) = patches_between(cells, torch.tensor([0.0]), torch.tensor([width - 1.0]), 3)
    rows, columns = (torch.tensor(v) for v in ([0, 0, min(1, height - 1)], [max(0, width - 2), width - 1, width - 1]))
    torch.testing.assert_close(found, cells[:, rows][:, :, columns])
