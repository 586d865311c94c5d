from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from siamese_sat.errors import InputError
from siamese_sat.search.whiten import fit_whitening

CHANNELS = 12


@pytest.fixture(scope="module")
def samples() -> list[Tensor]:
    """Cells of very different lengths, some channels louder than others, in three samples of different shape."""
    rng = np.random.default_rng(0)
    mix = np.linalg.qr(rng.normal(0, 1, (CHANNELS, CHANNELS)))[0] * np.linspace(0.3, 3, CHANNELS)
    shapes = [(20, 30), (7, 1), (40, 25)]
    found = []
    for shape in shapes:
        cells = np.tensordot(mix, rng.normal(0.4, 1, (CHANNELS, *shape)), 1) * rng.uniform(0.5, 50, shape)
        found.append(torch.from_numpy(cells.astype(np.float32)))
    return found


def unit(samples: list[Tensor]) -> npt.NDArray[np.float64]:
    """Cells ``[n, C]`` of unit length."""
    cells = np.concatenate([s.reshape(len(s), -1).numpy() for s in samples], axis=1).T.astype(float)
    return np.asarray(cells / np.linalg.norm(cells, axis=1, keepdims=True))


def whitened(samples: list[Tensor], dimensions: int = CHANNELS, shrinkage: float = 0.0) -> npt.NDArray[np.float64]:
    whitening = fit_whitening(iter(samples), dimensions, shrinkage)
    found = [whitening(s) for s in samples]
    assert [f.shape[1:] for f in found] == [s.shape[1:] for s in samples]
    return torch.cat([f.reshape(len(f), -1) for f in found], 1).T.double().numpy()


def test_the_background_has_no_mean_and_the_identity_for_covariance(samples: list[Tensor]) -> None:
    cells = whitened(samples)
    np.testing.assert_allclose(cells.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(cells.T, bias=True), np.eye(CHANNELS), atol=1e-3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7, 1.0])
def test_against_the_formula(samples: list[Tensor], shrinkage: float) -> None:
    """Products of whitened cells, which no turning of the axes changes."""
    cells = unit(samples)
    covariance = np.cov(cells.T, bias=True)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / CHANNELS * np.eye(CHANNELS)
    centred = (cells - cells.mean(0))[:50]
    expected = centred @ np.linalg.inv(shrunk) @ centred.T
    found = whitened(samples, shrinkage=shrinkage)[:50]
    np.testing.assert_allclose(found @ found.T, expected, atol=2e-3 * np.abs(expected).max())


def test_all_shrinkage_leaves_every_axis_alike(samples: list[Tensor]) -> None:
    whitening = fit_whitening(samples, CHANNELS, 1.0)
    product = (whitening.axes @ whitening.axes.T).numpy()
    np.testing.assert_allclose(product, product[0, 0] * np.eye(CHANNELS), atol=1e-4 * product[0, 0])


def test_the_strongest_axes_are_kept(samples: list[Tensor]) -> None:
    values, vectors = np.linalg.eigh(np.cov(unit(samples).T, bias=True))
    whitening = fit_whitening(samples, 3, 0.0)
    assert whitening.axes.shape == (CHANNELS, 3)
    for i in range(3):
        expected = vectors[:, -1 - i] / np.sqrt(values[-1 - i])
        found = whitening.axes[:, i].numpy()
        np.testing.assert_allclose(np.abs(found @ expected), expected @ expected, rtol=1e-3)
    assert fit_whitening(samples, 500).axes.shape == (CHANNELS, CHANNELS), "no more axes than channels"


def test_a_cells_length_says_nothing(samples: list[Tensor]) -> None:
    whitening = fit_whitening(samples)
    torch.testing.assert_close(whitening(samples[0] * 7), whitening(samples[0]), rtol=0, atol=1e-4)
    louder = fit_whitening([s * 9 for s in samples])
    torch.testing.assert_close(
        louder(samples[0]).square().sum(0), whitening(samples[0]).square().sum(0), rtol=1e-3, atol=0
    )


def test_samples_are_added_up_not_averaged_one_by_one(samples: list[Tensor]) -> None:
    joined = torch.cat([s.reshape(CHANNELS, -1) for s in samples], 1)[:, None]
    one, many = fit_whitening([joined]), fit_whitening(samples)
    torch.testing.assert_close(one.mean, many.mean)
    np.testing.assert_allclose(one.axes @ one.axes.T, many.axes @ many.axes.T, rtol=1e-3, atol=1e-2)


def test_features_that_never_vary_stay_finite() -> None:
    flat = torch.ones(CHANNELS, 5, 5)
    half = torch.cat([torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 9, 9)])
    for sample in (flat, half):
        for shrinkage in (0.0, 0.1):
            found = fit_whitening([sample], shrinkage=shrinkage)(sample + 0.01)
            assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("dimensions", "shrinkage"), [(128, -0.01), (128, 1.01), (128, float("nan")), (0, 0.1), (-3, 0.1)]
)
def test_settings_that_cannot_be(samples: list[Tensor], dimensions: int, shrinkage: float) -> None:
    with pytest.raises(InputError, match="shrinkage"):
        fit_whitening(samples, dimensions, shrinkage)


@pytest.mark.parametrize("nothing", [[], [torch.zeros(CHANNELS, 0, 1)]])
def test_nothing_to_learn_from(nothing: list[Tensor]) -> None:
    with pytest.raises(InputError, match="No valid pixel"):
        fit_whitening(nothing)
