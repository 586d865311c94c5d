from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siamese_sat.search.maps import Maps, Whitenings
from siamese_sat.search.peak import patches_at
from siamese_sat.search.whiten import Whitening


def ramp(height: int, width: int, row: float = 0, column: float = 0, step: float = 1) -> Tensor:
    """``[2, height, width]`` whose values are rows and columns: where a patch was cut can be read off it."""
    y, x = row + step * torch.arange(float(height)), column + step * torch.arange(float(width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))


def places(*found: float) -> Tensor:
    return torch.tensor(found)


@pytest.mark.parametrize(("phase", "origin"), [(2, (3.0, 1.0)), (2, (2.5, 4.0)), (4, (3.25, 2.0)), (1, (3.0, 3.0))])
def test_deep_patches_have_the_middle_of_the_first_stages(phase: int, origin: tuple[float, float]) -> None:
    """Both maps hold the place in cells of the first stage; the deep one begins ``origin`` of its cells before."""
    deep = ramp(30, 30, -phase * origin[0], -phase * origin[1], phase)
    maps = Maps(ramp(20, 24), lambda: deep, origin, phase)
    y, x = torch.tensor([0, 3, 7]), torch.tensor([5, 2, 8])
    still = torch.zeros(3)
    shallow, further = maps.patches(y, x, 5, 3, (still, still))
    assert further is not None
    assert further.shape == (3, 2, 3, 3)
    assert torch.equal(shallow, patches_at(maps.cells, y, x, 5))
    torch.testing.assert_close(further[:, :, 1, 1], shallow[:, :, 2, 2])
    torch.testing.assert_close(further[:, 0, 2, 1] - further[:, 0, 1, 1], torch.full((3,), float(phase)))
    off = (places(0.25, -0.5, 0.0), places(0.0, 0.5, -0.125))
    same, moved = maps.patches(y, x, 5, 3, off)
    assert moved is not None
    assert torch.equal(same, shallow), "the first stage's cells are not cut between"
    torch.testing.assert_close(moved[:, :, 1, 1], shallow[:, :, 2, 2] + torch.stack(off, dim=1))


def test_without_a_deep_stage_there_are_no_deep_patches() -> None:
    y = torch.tensor([1])
    shallow, deep = Maps(ramp(9, 9), None).patches(y, y, 3, 3, (y * 0.5, y * 0.5))
    assert shallow.shape == (1, 2, 3, 3)
    assert deep is None


def test_each_stage_has_its_own_whitening() -> None:
    one = Whitening(torch.zeros(2), 3 * torch.eye(2))
    two = Whitening(torch.zeros(3), 5 * torch.eye(3)[:, :2])
    first, second = torch.rand(2, 4, 4) + 0.1, torch.rand(3, 2, 2) + 0.1
    maps = Whitenings(one, two, 2)(first, lambda: second, (1.0, 0.5))
    assert torch.equal(maps.cells, one(first))
    assert maps.deep is not None
    assert torch.equal(maps.deep, two(second))
    assert (maps.origin, maps.phase) == ((1.0, 0.5), 2)
    assert Whitenings(one, None)(first, lambda: second).deep is None
    assert Whitenings(one, two)(first, None).deep is None
