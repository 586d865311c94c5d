from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from siamese_sat.search.level import valid_share


@pytest.mark.parametrize("shape", [(64, 40), (61, 45)])
def test_a_cell_is_as_valid_as_the_pixels_round_its_centre(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for valid in (torch.rand(shape), torch.ones(shape), torch.zeros(shape), (torch.rand(shape) > 0.5).float()):
        padded = F.pad(valid[None, None], (4, 0, 4, 0), mode="replicate")
        torch.testing.assert_close(valid_share(valid, 8), F.avg_pool2d(padded, 8)[0, 0])
    # Of fractions, as of a scene made small: none is 0, and none is whole.
    assert valid_share(torch.full(shape, 0.25), 8).unique().tolist() == [0.25]
