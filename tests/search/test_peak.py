from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.search.peak import local_maxima, patches_at, patches_between, vertex

LOW = -9.0


def pairs(found: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for y, x in zip(*found, strict=True)]


def score_of(peaks: dict[tuple[int, int], float], height: int = 6, width: int = 8) -> Tensor:
    """``[h + 2, w + 2]`` of 0, and the peaks counted from -1."""
    score = torch.zeros(height + 2, width + 2)
    for (y, x), value in peaks.items():
        score[y + 1, x + 1] = value
    return score


EVERYWHERE = torch.ones(6, 8, dtype=torch.bool)


def test_peaks_are_where_no_neighbour_exceeds() -> None:
    score = score_of({(1, 2): 0.9, (2, 3): 0.8, (4, 6): 0.5, (4, 4): 0.3, (0, 7): 0.4, (5, 0): 0.2})
    assert pairs(local_maxima(score, 0.1, EVERYWHERE, 99)) == [(0, 7), (1, 2), (4, 4), (4, 6), (5, 0)]


def test_every_peak_of_noise_against_its_neighbours() -> None:
    score = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    expected = []
    for y in range(18):
        for x in range(28):
            around = score[y : y + 3, x : x + 3]
            if score[y + 1, x + 1] == around.max() and score[y + 1, x + 1] >= 0.5:
                expected.append((y, x))
    assert len(expected) > 20
    assert pairs(local_maxima(score, 0.5, torch.ones(18, 28, dtype=torch.bool), 999)) == expected


def test_a_border_is_no_peak_by_itself() -> None:
    rising = torch.arange(10.0)[None].expand(8, -1)
    assert pairs(local_maxima(rising, LOW, EVERYWHERE, 99)) == []
    assert pairs(local_maxima(-rising.flip(1) + 20, LOW, EVERYWHERE, 99)) == []
    # The highest of what is asked for, but one beyond it is higher: a neighbouring tile's.
    beyond = score_of({(2, 7): 0.5, (2, 8): 0.6, (4, 0): 0.5, (5, -1): 0.5})
    assert pairs(local_maxima(beyond, 0.1, EVERYWHERE, 99)) == [(4, 0)]


def test_neighbours_that_are_equal_are_both_peaks() -> None:
    assert pairs(local_maxima(score_of({(2, 3): 0.5, (2, 4): 0.5}), 0.1, EVERYWHERE, 99)) == [(2, 3), (2, 4)]


def test_peaks_below_the_least_and_invalid_ones_are_left_out() -> None:
    score = score_of({(1, 2): 0.9, (4, 6): 0.5, (4, 1): 0.3})
    assert pairs(local_maxima(score, 0.5, EVERYWHERE, 99)) == [(1, 2), (4, 6)]
    valid = EVERYWHERE.clone()
    valid[1, 2] = False
    assert pairs(local_maxima(score, 0.1, valid, 99)) == [(4, 1), (4, 6)]
    # No neighbour takes an invalid peak's place.
    score[2, 4] = 0.8
    assert pairs(local_maxima(score, 0.1, valid, 99)) == [(4, 1), (4, 6)]
    assert pairs(local_maxima(score, float("inf"), EVERYWHERE, 99)) == []


@pytest.mark.parametrize(("most", "expected"), [(1, {(1, 2)}), (2, {(1, 2), (4, 6)}), (3, {(1, 2), (4, 6), (4, 1)})])
def test_the_best_are_kept(most: int, expected: set[tuple[int, int]]) -> None:
    score = score_of({(1, 2): 0.9, (4, 6): 0.5, (4, 1): 0.3})
    assert set(pairs(local_maxima(score, 0.1, EVERYWHERE, most))) == expected


@pytest.mark.parametrize(("dy", "dx"), [(0.0, 0.0), (0.3, -0.2), (-0.45, 0.5), (0.1, 0.4)])
def test_the_top_of_a_parabola(dy: float, dx: float) -> None:
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    score = 0.8 - 0.03 * (rows - 5 - dy) ** 2 - 0.01 * (columns - 2 - dx) ** 2
    found = vertex(score, torch.tensor([5]), torch.tensor([2]))
    assert [float(v) for v in found] == pytest.approx([dy, dx], abs=1e-4)


def test_offsets_of_many_peaks_stay_within_their_cells() -> None:
    score = F.avg_pool2d(torch.randn(1, 42, 42, generator=torch.Generator().manual_seed(1)), 3, stride=1)[0]
    y, x = local_maxima(score, LOW, torch.ones(38, 38, dtype=torch.bool), 999)
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
