from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siamese_sat.data.augment import VIEWS, Augment, dihedral

# Two bands of 2 x 2, all values different.
CHIP = torch.arange(8.0).reshape(2, 2, 2)
# The eight arrangements of a b / c d that a rigid square has.
SQUARES = {"abcd", "bdac", "dcba", "cadb", "badc", "dbca", "cdab", "acbd"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def letters(band: Tensor) -> str:
    return "".join("abcd"[int(v)] for v in band.flatten())


def test_the_eight_views_are_those_of_a_square() -> None:
    views = [dihedral(CHIP, v) for v in range(VIEWS)]
    assert {letters(v[0]) for v in views} == SQUARES
    assert all(letters(v[0]) == letters(v[1] - 4) for v in views)  # bands stay in place and turn together
    torch.testing.assert_close(views[0], CHIP)


def test_a_batch_holds_all_views_and_nothing_else() -> None:
    batch = CHIP.repeat(400, 1, 1, 1)
    got = Augment(gain=0, offset=0, noise=0)(batch, seeded())
    counts = torch.tensor([sum(letters(g[0]) == s for g in got) for s in sorted(SQUARES)])
    assert counts.sum() == 400
    assert counts.min() > 25  # 50 expected


def test_each_chip_has_the_view_that_was_drawn_for_it() -> None:
    batch = torch.rand(100, 3, 5, 5)
    views = torch.randint(VIEWS, (100,), generator=seeded())
    got = Augment(gain=0, offset=0, noise=0)(batch, seeded())
    wanted = torch.stack([dihedral(chip, view) for chip, view in zip(batch, views.tolist(), strict=True)])
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_each_chip_keeps_its_place_in_the_batch() -> None:
    batch = torch.arange(20.0)[:, None, None, None].expand(20, 1, 4, 4)
    torch.testing.assert_close(Augment(gain=0, offset=0, noise=0)(batch, seeded()), batch)


def test_gain_is_per_chip_and_band_and_within_its_bounds() -> None:
    got = Augment(dihedral=False, gain=0.1, offset=0, noise=0)(torch.ones(500, 3, 2, 2), seeded())
    factors = got[:, :, 0, 0]
    torch.testing.assert_close(got, factors[:, :, None, None].expand_as(got))
    assert 0.9 <= factors.min() < 0.905
    assert 1.095 < factors.max() <= 1.1
    assert factors.unique().numel() > 1400
    assert not Augment(dihedral=False, gain=0.1, offset=0, noise=0)(torch.zeros(5, 3, 2, 2)).any()


def test_offset_is_per_chip_and_band_and_within_its_bounds() -> None:
    got = Augment(dihedral=False, gain=0, offset=0.1, noise=0)(torch.zeros(500, 3, 2, 2), seeded())
    shifts = got[:, :, 0, 0]
    torch.testing.assert_close(got, shifts[:, :, None, None].expand_as(got))
    assert -0.1 <= shifts.min() < -0.095
    assert 0.095 < shifts.max() <= 0.1
    assert shifts.unique().numel() > 1400


def test_noise_is_per_pixel_and_of_its_strength() -> None:
    got = Augment(dihedral=False, gain=0, offset=0, noise=0.02)(torch.zeros(50, 3, 16, 16), seeded())
    assert got.mean().abs() < 0.001
    assert got.std().item() == pytest.approx(0.02, rel=0.03)
    assert got[0, 0].unique().numel() > 250


def test_switched_off_nothing_happens() -> None:
    batch = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(Augment(False, 0, 0, 0)(batch, seeded()), batch, rtol=0, atol=0)


@pytest.mark.parametrize(
    "augment", [Augment(), Augment(False), Augment(gain=0, offset=0), Augment(noise=0), Augment(False, 0, 0, 0.1)]
)
def test_one_seed_one_result_and_the_input_is_kept(augment: Augment) -> None:
    batch = torch.rand(8, 3, 8, 8, generator=seeded(9))
    before = batch.clone()
    first = augment(batch, seeded(1))
    assert first.shape == batch.shape
    torch.testing.assert_close(augment(batch, seeded(1)), first, rtol=0, atol=0)
    assert not torch.equal(augment(batch, seeded(2)), first)
    torch.testing.assert_close(batch, before, rtol=0, atol=0)
