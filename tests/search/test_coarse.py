from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.search import coarse
from siamese_sat.search.coarse import AROUND, Peaks, find_peaks
from siamese_sat.search.consensus import Consensus, find_consensus
from siamese_sat.search.peak import vertex

SIZE = 5
MARGIN = SIZE // 2 + AROUND
EVERY = float("-inf")


def smooth(*shape: int, seed: int) -> Tensor:
    """Noise in which neighbours are alike, as the cells of a network's map are."""
    noise = torch.randn(*shape[:-2], shape[-2] + 2, shape[-1] + 2, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise.flatten(0, -4) if noise.ndim > 4 else noise, 3, stride=1).reshape(shape)


@pytest.fixture
def classes() -> list[Consensus]:
    return [find_consensus(smooth(1, 4, 6, SIZE, SIZE, seed=s)) for s in (1, 2)]


def full(cells: Tensor, one: Consensus) -> Tensor:
    """The cosine everywhere, as `find_peaks` would have it without its coarse half."""
    found = F.conv2d(cells[None], one.kernels)[0]
    return (found / F.conv2d(cells.square().sum(0)[None, None], one.weights[:, None])[0].sqrt()).amax(0)


def rows(peaks: Peaks) -> set[tuple[int, int]]:
    return set(zip(peaks.y.tolist(), peaks.x.tolist(), strict=True))


def planted(classes: list[Consensus], *at: tuple[int, int, int]) -> Tensor:
    """A map with class n's first exemplar in view 1 at row and column (of its first cell)."""
    cells = 0.3 * smooth(6, 40, 45, seed=5)
    for number, y, x in at:
        cells[:, y : y + SIZE, x : x + SIZE] = classes[number].patches[0, 1]
    return cells


@pytest.mark.parametrize("many", [-1.0, 2.0], ids=["by the map", "by windows"])
@pytest.mark.parametrize(("height", "width"), [(20, 24), (21, 25), (1, 2)])
@pytest.mark.parametrize("more", [0, 3])
def test_without_a_threshold_every_peak_of_the_full_comparison_is_found(
    classes: list[Consensus], height: int, width: int, more: int, many: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse, "MANY", many)
    margin = MARGIN + more
    cells = smooth(6, height + 2 * margin, width + 2 * margin, seed=3)
    valid = torch.rand(height, width, generator=torch.Generator().manual_seed(4)) > 0.2
    found = find_peaks(cells, classes, [EVERY, EVERY], valid, margin, 9999, torch.float32)
    for one, peaks in zip(classes, found, strict=True):
        score = full(cells, one)
        around = score[margin - SIZE // 2 - 1 :, margin - SIZE // 2 - 1 :][: height + 2, : width + 2]
        peak = (around[1:-1, 1:-1] >= F.max_pool2d(around[None, None], 3, stride=1)[0, 0]) & valid
        y, x = torch.nonzero(peak, as_tuple=True)
        first = margin - SIZE // 2
        assert rows(peaks) == set(zip((y + first).tolist(), (x + first).tolist(), strict=True))
        assert len(peaks) or height == 1
        dy, dx = vertex(score, peaks.y, peaks.x)
        torch.testing.assert_close(peaks.dy, dy, rtol=0, atol=1e-3)
        torch.testing.assert_close(peaks.dx, dx, rtol=0, atol=1e-3)


@pytest.mark.parametrize("y", [12, 13])
@pytest.mark.parametrize("x", [20, 21])
def test_what_stands_out_is_found_wherever_it_lies_between_coarse_cells(
    classes: list[Consensus], y: int, x: int
) -> None:
    cells = planted(classes, (0, y, x), (1, y + 9, x - 9))
    valid = torch.ones(40 - 2 * MARGIN, 45 - 2 * MARGIN, dtype=torch.bool)
    found = find_peaks(cells, classes, [0.8, 0.8], valid, MARGIN, 9999, torch.float32)
    assert rows(found[0]) == {(y, x)}
    assert rows(found[1]) == {(y + 9, x - 9)}


def test_no_more_places_are_looked_into_than_asked_and_the_best_stay(classes: list[Consensus]) -> None:
    cells = planted(classes, (0, 12, 20))
    valid = torch.ones(40 - 2 * MARGIN, 45 - 2 * MARGIN, dtype=torch.bool)
    few, many = (find_peaks(cells, classes[:1], [0.01], valid, MARGIN, most, torch.float32)[0] for most in (3, 999))
    assert rows(few) < rows(many)
    assert (12, 20) in rows(few)


def test_a_tile_border_moves_no_peak(classes: list[Consensus]) -> None:
    """Two tiles, cut at an even cell, find what one finds."""
    cells = smooth(6, 30 + 2 * MARGIN, 31 + 2 * MARGIN, seed=7)
    valid = torch.ones(30, 31, dtype=torch.bool)
    (whole,) = find_peaks(cells, classes[:1], [0.05], valid, MARGIN, 9999, torch.float32)
    found: set[tuple[int, int]] = set()
    for first, last in ((0, 14), (14, 31)):
        part = cells[:, :, first : last + 2 * MARGIN]
        (peaks,) = find_peaks(part, classes[:1], [0.05], valid[:, first:last], MARGIN, 9999, torch.float32)
        found |= {(y, x + first) for y, x in rows(peaks)}
    assert found == rows(whole)
    assert len(found) > 5


def test_a_margin_too_small_is_told(classes: list[Consensus]) -> None:
    with pytest.raises(ValueError, match="margin 3"):
        find_peaks(torch.ones(6, 9, 9), classes, [0.1, 0.1], torch.ones(3, 3, dtype=torch.bool), 3, 9, torch.float32)
