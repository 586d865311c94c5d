from __future__ import annotations

import torch
import torch.nn.functional as F

from siamese_sat.model.statistics import FeatureStatistics, measure


def cells(count: int, seed: int) -> torch.Tensor:
    return torch.randn(6, count, 1, generator=torch.Generator().manual_seed(seed)) + torch.arange(6.0)[:, None, None]


def test_streamed_as_at_once() -> None:
    first, second = cells(50, 0), cells(30, 1)
    found = measure([first, second])
    assert found is not None
    assert found.count == 80
    unit = F.normalize(torch.cat([first, second], dim=1)[..., 0], dim=0).double()
    torch.testing.assert_close(found.mean, unit.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.covariance, torch.cov(unit, correction=0), atol=1e-6, rtol=0)


def test_nothing_has_no_statistics() -> None:
    assert measure([]) is None


def test_few_cells_lean_on_others_as_far_as_they_are_few() -> None:
    few, many = measure([cells(40, 2)]), measure([-cells(40, 3)])
    assert few is not None
    assert many is not None
    assert few.leaning_on(many, 40) is few
    # Half of each is what both together, equally many, have.
    both = measure([cells(40, 2), -cells(40, 3)])
    assert both is not None
    half = few.leaning_on(many, 80)
    torch.testing.assert_close(half.mean, both.mean)
    torch.testing.assert_close(half.covariance, both.covariance)
    torch.testing.assert_close(few.leaning_on(many, 10**9).mean, many.mean)


def test_a_checkpoint_carries_them() -> None:
    found = measure([cells(40, 4)])
    assert found is not None
    again = FeatureStatistics.from_dict(found.to_dict())
    assert again.count == 40
    torch.testing.assert_close(again.covariance, found.covariance, atol=1e-6, rtol=0)
