from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.search.consensus import Consensus, agreement, align, find_consensus

EXEMPLARS, VIEWS, DEPTH, SIDE = 3, 4, 6, 5


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def cells() -> Tensor:
    """Three exemplars that have something in common, turned by 0, 1 and 3 views."""
    common = noise(0, VIEWS, DEPTH, SIDE, SIDE)
    own = [common + 0.5 * noise(i + 1, VIEWS, DEPTH, SIDE, SIDE) for i in range(EXEMPLARS)]
    return torch.stack([one.roll(turn, 0) for one, turn in zip(own, (0, 1, 3), strict=True)])


@pytest.fixture(scope="module")
def places() -> Tensor:
    return noise(9, 7, DEPTH, SIDE, SIDE) + 0.3


def weighted_cosine(
    place: npt.NDArray[np.float64],
    exemplar: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
    contrast: float,
) -> float:
    """Of two patches ``[D, n, n]``, cell by cell."""
    inner, energies = 0.0, [0.0, 0.0]
    means = [(v * weight).sum((1, 2)) / weight.sum() for v in (place, exemplar)]
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            one, two = (v[:, row, column] - contrast * m for v, m in zip((place, exemplar), means, strict=True))
            w = weight[row, column]
            inner += w * float(one @ two)
            energies[0] += w * float(one @ one)
            energies[1] += w * float(two @ two)
    return inner / float(np.sqrt(energies[0] * energies[1]))


@pytest.mark.parametrize("contrast", [0.0, 0.2, 1.0])
def test_cosines_against_the_formula(contrast: float, cells: Tensor, places: Tensor) -> None:
    found = find_consensus(cells, contrast)
    assert found.contrast == contrast
    expected = np.empty((len(places), EXEMPLARS, VIEWS))
    for i, e, v in np.ndindex(expected.shape):
        exemplar = cells[e, (v + found.shift[e]) % VIEWS]
        parts = (places[i], exemplar, found.weights[v])
        expected[i, e, v] = weighted_cosine(*(p.double().numpy() for p in parts), contrast)
    np.testing.assert_allclose(found.cosines(places).numpy(), expected, atol=1e-5)
    assert expected.std() > 0.05


@pytest.mark.parametrize("contrast", [0.0, 0.2, 1.0])
def test_an_exemplar_is_itself(contrast: float, cells: Tensor) -> None:
    found = find_consensus(cells, contrast)
    for number, (one, shift) in enumerate(zip(cells, found.shift, strict=True)):
        own = found.cosines(one.roll(-int(shift), 0))[:, number]
        torch.testing.assert_close(own.diagonal(), torch.ones(VIEWS))
        assert float(own.max()) < 1 + 1e-5
    weights = found.weights[None, :, None]
    lengths = (found.patches.square() / weights.clamp(min=1e-9)).sum((2, 3, 4))
    torch.testing.assert_close(lengths, torch.ones(EXEMPLARS, VIEWS))


def test_kernels_give_the_mean_of_the_cosines_in_one_direction(cells: Tensor, places: Tensor) -> None:
    found = find_consensus(cells)
    energy = (places.square().sum(1)[:, None] * found.weights[None]).sum((2, 3))
    dots = torch.einsum("ndij,vdij->nv", places, found.kernels) / energy.sqrt()
    torch.testing.assert_close(dots, found.cosines(places).mean(1))
    # Where places are first looked for, nothing is taken off them, whatever is later.
    torch.testing.assert_close(find_consensus(cells, 0.7).kernels, found.kernels)


def test_what_lies_evenly_counts_less_the_greater_the_contrast(cells: Tensor, places: Tensor) -> None:
    even = 2 * noise(20, DEPTH)[None, :, None, None]
    same = [find_consensus(cells + even, c).cosines(places + even).mean() for c in (0.0, 0.2, 1.0)]
    assert same[0] > same[1] + 0.02
    assert same[1] > same[2] + 0.02
    torch.testing.assert_close(same[2], find_consensus(cells + even, 1.0).cosines(places).mean())


@pytest.mark.parametrize("contrast", [0.0, 0.2, 1.0])
def test_an_even_place_stays_within_reason(contrast: float, cells: Tensor) -> None:
    even = (30 * noise(21, 50, DEPTH))[:, :, None, None].expand(-1, -1, SIDE, SIDE)
    found = find_consensus(cells, contrast).cosines(torch.cat([even, torch.zeros_like(even)]))
    assert float(found.abs().max()) < 1
    if contrast == 1:
        assert float(found.abs().max()) < 0.01, "nothing is left of it"
    assert (found[50:] == 0).all()


def test_cells_beyond_an_exemplars_image_say_nothing(cells: Tensor, places: Tensor) -> None:
    cut = cells[:1].clone()
    cut[:, :, :, :, 0] = 0
    found = find_consensus(cut, 0.2)
    assert (found.patches[..., 0] == 0).all()
    assert (found.patches[..., 1:] != 0).all()
    # The rest is as if there were no more of it.
    rest = find_consensus(cut[..., 1:], 0.2)
    torch.testing.assert_close(found.patches[..., 1:], rest.patches)


def test_surroundings_weigh_less_than_the_thing() -> None:
    thing, views, depth = noise(0, 4, 64, 9, 9), 4, 64
    many = []
    for i in range(4):
        one = noise(i + 1, views, depth, 9, 9)
        one[:, :, 3:6, 3:6] = thing[:, :, 3:6, 3:6] + 0.3 * one[:, :, 3:6, 3:6]
        many.append(one.roll(i, 0))
    found = find_consensus(torch.stack(many))
    outside = torch.ones(9, 9, dtype=torch.bool)
    outside[3:6, 3:6] = False
    assert float(found.weights[:, ~outside].min()) > 0.8
    assert float(found.weights[:, outside].mean()) < 0.1
    # What is planted in other surroundings is recognised as if these were not there.
    place = noise(50, 1, depth, 9, 9)
    place[:, :, 3:6, 3:6] = thing[:1, :, 3:6, 3:6]
    assert float(found.cosines(place).amax(2).mean()) > 0.7
    even = Consensus(found.kernels, torch.stack(many), torch.ones_like(found.weights), found.shift, 0.0)
    lengths = torch.stack(many).square().sum((2, 3, 4)).sqrt()
    assert float((even.cosines(place) / lengths).amax(2).mean()) < 0.3


def test_identical_cells_agree() -> None:
    one = noise(0, VIEWS, DEPTH, SIDE, SIDE)
    for count in (1, 2, 5):
        torch.testing.assert_close(agreement(torch.stack([one] * count)), torch.ones(VIEWS, SIDE, SIDE))
    torch.testing.assert_close(agreement(noise(1, 1, VIEWS, DEPTH, SIDE, SIDE)), torch.ones(VIEWS, SIDE, SIDE))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_unrelated_cells_do_not_agree(count: int) -> None:
    cells = noise(0, count, 2, 1000, SIDE, SIDE)
    cells[:, :, :, 0, 0] = cells[:1, :, :, 0, 0]
    found = agreement(cells)
    torch.testing.assert_close(found[:, 0, 0], torch.ones(2))
    assert float(found.flatten(1)[:, 1:].max()) < 0.12, "however few there are"


def test_agreement_by_hand() -> None:
    """Of two cells of one length, their cosine; relative to the view's best."""
    angles = torch.tensor([[0.3, 1.0, 1.5, 2.5], [1.2, 1.3, 1.4, 3.1]]).reshape(2, 2, 2)
    one = torch.stack([torch.ones_like(angles), torch.zeros_like(angles)], 1)
    two = torch.stack([angles.cos(), angles.sin()], 1)
    cosine = angles.cos().clamp(min=0)
    expected = cosine / cosine.amax((1, 2), keepdim=True)
    torch.testing.assert_close(agreement(torch.stack([one, two])), expected)
    # Three of which two are the same and one is at right angles: a third of the pairs.
    same, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    cell = torch.stack([same, same, other])[:, None, :, None, None]
    best = torch.stack([same, same, same])[:, None, :, None, None]
    found = agreement(torch.cat([cell, best], 4))
    torch.testing.assert_close(found[0, 0], torch.tensor([1 / 3, 1.0]))


def test_exemplars_with_nothing_in_common_count_everywhere() -> None:
    one = noise(0, VIEWS, DEPTH, SIDE, SIDE)
    torch.testing.assert_close(agreement(torch.stack([one, -one])), torch.ones(VIEWS, SIDE, SIDE))
    assert torch.isfinite(find_consensus(torch.stack([one, -one]), 0.2).patches).all()
    assert torch.isfinite(find_consensus(torch.zeros(2, VIEWS, DEPTH, SIDE, SIDE), 0.2).patches).all()


def turned(turns: list[int], loudness: float, seed: int = 0) -> Tensor:
    """The same thing in 8 views turned, each with noise of its own, unit length."""
    base, *noises = noise(seed, len(turns) + 1, 8, 40)
    own = [base + loudness * n for n in noises]
    return F.normalize(torch.stack([one.roll(t, 0) for one, t in zip(own, turns, strict=True)]), dim=2)


@pytest.mark.parametrize("turns", [[0, 0], [3, 0], [0, 5, 2, 7], [6, 6, 1, 4, 3, 0, 2]])
def test_known_turns_are_found(turns: list[int]) -> None:
    found = align(turned(turns, 0.5))
    assert found.shape == (len(turns),)
    assert ((found >= 0) & (found < 8)).all()
    assert len(set((found - turns) % 8)) == 1, "all but a common turn, of which nobody knows"


def test_turns_are_found_by_all_together_where_one_does_not_suffice() -> None:
    turns, together, alone = [0, 3, 6, 1, 4, 7, 2, 5, 0, 3, 6, 1], [], []
    for seed in range(8):
        views = turned(turns, 2.6, seed)
        together.append(len(set((align(views) - turns) % 8)) == 1)
        alike = torch.stack([torch.einsum("vd,jvd->j", views[0], views.roll(-t, 1)) for t in range(8)])
        alone.append(len(set((alike.argmax(0).numpy() - turns) % 8)) == 1)
    assert all(together)
    assert sum(alone) < 6


def test_a_single_exemplar_is_not_turned() -> None:
    np.testing.assert_array_equal(align(turned([3], 0.0)), [0])


def test_exemplars_turned_alike_are_the_same_exemplar(places: Tensor) -> None:
    one = noise(0, VIEWS, DEPTH, SIDE, SIDE)
    found = find_consensus(torch.stack([one.roll(t, 0) for t in (0, 1, 3)]), 0.2)
    torch.testing.assert_close(found.patches, found.patches[:1].expand_as(found.patches))
    # One exemplar is matched in as many directions, whichever comes first.
    best = found.cosines(places).amax(2)
    torch.testing.assert_close(best[:, 0], find_consensus(one[None], 0.2).cosines(places).amax(2)[:, 0])
