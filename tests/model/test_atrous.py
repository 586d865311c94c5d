from __future__ import annotations

import pytest
import torch

from siamese_sat.errors import InputError
from siamese_sat.model.atrous import Finer
from siamese_sat.model.deploy import DeployedEmbedder
from tests.model.test_deploy import trained

KINDS = ["resnet18", "resnet50", "resnet50 v1", "resnet_tiny"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [8, 16, 32])
@torch.inference_mode()
def test_cells_keep_their_values(kind: str, stride: int) -> None:
    backbone = DeployedEmbedder(trained(kind)).backbone
    image = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    step = 32 // stride
    before, found = backbone(image), Finer(backbone, stride)(image)
    assert found.shape[2:] == (96 // stride, 160 // stride)
    torch.testing.assert_close(found[:, :, ::step, ::step], before, rtol=1e-3, atol=1e-3)
    # The backbone itself is as it was.
    torch.testing.assert_close(backbone(image), before, rtol=0, atol=0)


@pytest.mark.parametrize("stride", [8, 16])
@torch.inference_mode()
def test_cells_between_are_those_of_the_image_shifted(stride: int) -> None:
    backbone = DeployedEmbedder(trained("resnet_tiny")).backbone
    image = torch.randn(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    found = Finer(backbone, stride)(image)
    shifted = backbone(image[:, :, stride:, stride:])
    step = 32 // stride
    # Away from the borders, whose padding shifts with the image.
    around = backbone.reach("layer4") // 32 + 1  # type: ignore[operator]
    inner = slice(around, -around)
    between = found[:, :, 1::step, 1::step][:, :, : shifted.shape[2], : shifted.shape[3]]
    assert shifted[:, :, inner, inner].numel() > 0
    torch.testing.assert_close(between[:, :, inner, inner], shifted[:, :, inner, inner], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stride", [4, 24, 64])
def test_other_strides_cannot_be_had(stride: int) -> None:
    with pytest.raises(InputError, match=f"stride={stride}"):
        Finer(DeployedEmbedder(trained("resnet_tiny")).backbone, stride)
