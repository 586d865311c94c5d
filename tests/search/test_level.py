from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import SceneReader
from siamese_sat.search.level import SOFTNESS, Span, apron_of, blur_of, blurred, read_level, valid_share
from tests.conftest import make_scene

RADIOMETRY = Radiometry(("B", "G", "R", "NIR"), 1000.0, (0.11, 0.2, 0.3, 0.4), (0.1, 0.1, 0.2, 0.2))


@pytest.mark.parametrize("step", [50, 128, 301, 608])
@pytest.mark.parametrize("around", [(-208, 240), (-16, 56), (8, 16), (-208, 8)])
def test_what_lies_beyond_the_scene_is_not_read_and_looks_as_if_it_were(
    step: int, around: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(1, 900, (4, 620, 540)).astype("uint16")
    pixels[:, 200:300, :150] = 0
    scene = make_scene(tmp_path / "a.tif", pixels, nodata=0).within((5, 10, 530, 615))
    width, height = (math.ceil(n * 128 / step) for n in (525, 605))
    column = Span(0, 0, 0, around[0], around[1] + width)
    row = Span(0, 0, 0, around[0] // 8 * 8, around[1] + height)
    read: list[tuple[int, int]] = []
    inner = SceneReader.read

    def counted(self: SceneReader, x_min: int, y_min: int, width: int, height: int) -> Any:  # noqa: ANN401
        read.append((width, height))
        return inner(self, x_min, y_min, width, height)

    with SceneReader(scene) as reader:
        monkeypatch.setattr(SceneReader, "read", counted)
        level, share = read_level(reader, RADIOMETRY, step, column, row, torch.device("cpu"))
        # Twice what the filter reaches, and what the grid of whole pixels takes.
        beyond = 2 * (max(8, 64 / step) * step / 128 + step / math.gcd(step, 128))
        assert read[0][0] <= 525 + 2 * beyond
        assert read[0][1] <= 605 + 2 * beyond
        # All that was asked for, read at a stretch.
        units = [(math.floor(s.start / 128) - 1, math.ceil(s.stop / 128) + 1) for s in (column, row)]
        (x0, x1), (y0, y1) = ((a * step, b * step) for a, b in units)
        raw, valid = inner(reader, 5 + x0, 10 + y0, x1 - x0, y1 - y0)
    size = [(b - a) * 128 for a, b in units][::-1]
    filled = torch.from_numpy(RADIOMETRY.fill(raw, valid).astype("float32"))
    cut = tuple(
        slice(s.start - a * 128, s.stop - a * 128) for s, (a, _) in zip((row, column), units[::-1], strict=True)
    )
    expected = RADIOMETRY.normalise(torch.stack([resize(band[None, None], *size)[0, 0][cut] for band in filled]))
    torch.testing.assert_close(level, expected, atol=2e-3, rtol=0)
    valid_level = resize(torch.from_numpy(valid.astype("float32"))[None, None], *size)[0, 0][cut]
    torch.testing.assert_close(share, valid_level, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(64, 40), (61, 45)])
def test_a_cell_is_as_valid_as_the_pixels_round_its_centre(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for valid in (torch.rand(shape), torch.ones(shape), torch.zeros(shape), (torch.rand(shape) > 0.5).float()):
        padded = F.pad(valid[None, None], (4, 0, 4, 0), mode="replicate")
        torch.testing.assert_close(valid_share(valid, 8), F.avg_pool2d(padded, 8)[0, 0])
    # Of fractions, as of a scene made small: none is 0, and none is whole.
    assert valid_share(torch.full(shape, 0.25), 8).unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("covers", "grain"), [(c, g) for c in (0.6, 1.0, 1.5) for g in (2.0, 3.0, 5.0) if g >= 1.5 * c]
)
def test_a_blurred_level_shows_as_much_as_one_of_enlarged_pixels(grain: float, covers: float) -> None:
    """Ground as fine as a twelfth of a level pixel, seen by two sensors as soft as usual, each resized to the level."""
    fine, side = 12, 96
    optics = math.sqrt(SOFTNESS**2 - 1 / 12)  # what the width of a pixel itself leaves
    ground = torch.randn(1, 1, side * fine, side * fine, generator=torch.Generator().manual_seed(0))
    seen = []
    for wide in (covers, grain):
        pixels = F.avg_pool2d(blurred(ground[0], optics * wide * fine)[None], round(wide * fine))
        seen.append(resize(pixels, round(pixels.shape[2] * wide), round(pixels.shape[3] * wide))[0])
    inner = (0, slice(20, 70), slice(20, 70))
    sharp, coarse = (float(level[inner].std()) for level in seen)
    soft = float(blurred(seen[0], blur_of(covers, grain))[inner].std())
    assert soft == pytest.approx(coarse, rel=0.25 if covers >= 1 else 0.35)
    assert sharp > 1.4 * coarse


def test_what_hardly_blurs_does_not() -> None:
    assert blur_of(1.0, 0.0) == blur_of(2.0, 1.5) == blur_of(0.3, 1.0) == blur_of(1.0, 1.2) == 0
    assert blur_of(0.3, 2.0) == blur_of(1.0, 2.0) == pytest.approx(SOFTNESS * math.sqrt(3))
    level = torch.randn(3, 20, 30)
    assert blurred(level, 0.0) is level
    assert apron_of(0.0) == 0


@pytest.mark.parametrize("sigma", [0.5, 0.9, 3.0])
def test_a_blur_is_a_gaussian_and_sees_no_further_than_its_apron(sigma: float) -> None:
    pixels = torch.zeros(2, 61, 71)
    pixels[1, 30, 35] = 1
    found = blurred(pixels, sigma)
    assert found[0].abs().max() == 0
    seen = found[1].nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [2 * apron_of(sigma) + 1] * 2
    assert float(found[1].sum()) == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        share = found[1].sum(dim=1 - axis).double()
        place = torch.arange(len(share)) - (30, 35)[axis]
        assert float((share * place**2).sum()) == pytest.approx(sigma**2, rel=0.06, abs=0.04)  # sampled, and cut off
