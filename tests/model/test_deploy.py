from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamese_sat.data.chip import resize
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import Embedder, EmbedderSpec

BANDS = ("B", "G", "R", "NIR")
KINDS = ["resnet18", "resnet50", "resnet50 v1", "resnet_tiny", "resnet_tiny normed"]


def trained(kind: str) -> Embedder:
    """As if trained: BatchNorms with statistics and factors of their own, without which folding would be nothing."""
    gen = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    embedder = Embedder(
        EmbedderSpec(
            BANDS,
            backbone=kind.split()[0],
            variant="v1" if kind.endswith("v1") else "v1.5",
            hidden_dim=32,
            embedding_dim=16,
            projection_norm=kind.endswith("normed"),
        )
    )
    for norm in embedder.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.2, generator=gen)
            norm.running_var.uniform_(0.5, 2, generator=gen)
            norm.weight.data.uniform_(0.5, 1.2, generator=gen)
            norm.bias.data.normal_(0, 0.2, generator=gen)
    return embedder.eval()


def image(count: int, side: int) -> Tensor:
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_it_is_the_same_function_in_fp32(kind: str) -> None:
    embedder = trained(kind)
    deployed = DeployedEmbedder(embedder)
    x = image(3, 64)
    wanted, found = embedder(x), deployed(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3, "an embedder that says the same of everything proves nothing"
    for stage in ("layer2", "layer4"):
        wanted, found = embedder.features(x, stage), deployed.features(x, stage)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    torch.testing.assert_close(deployed.features(x), deployed.features(x, "layer4"))
    assert deployed.backbone.reach("layer2") == embedder.backbone.reach("layer2")


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
@torch.inference_mode()
def test_bf16_turns_hardly_a_cell(kind: str) -> None:
    embedder = trained(kind)
    deployed = DeployedEmbedder(embedder, dtype=torch.bfloat16)
    x = image(1, 128)
    wanted, found = embedder.features(x, "layer2"), deployed.features(x, "layer2")
    assert found.dtype == torch.bfloat16
    cosine = F.cosine_similarity(found.float(), wanted, dim=1)
    assert cosine.numel() == 256
    assert (cosine >= 0.999).float().mean() >= 0.99
    embeddings = deployed(x)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(1))
    wanted = embedder(x)
    assert F.cosine_similarity(embeddings, wanted, dim=1).min() >= 0.999
    assert not torch.equal(embeddings, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_gives_the_same_bits_with_any_number_of_threads(dtype: torch.dtype) -> None:
    """Else what a worker finds would depend on the cores that it was given."""
    deployed = DeployedEmbedder(Embedder(EmbedderSpec(BANDS)).eval(), dtype=dtype)
    pooled = torch.rand(64, deployed.backbone.width, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(deployed.embed_pooled(pooled))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_no_batchnorm_is_left_in_backbone_and_head() -> None:
    for kind in KINDS:
        deployed = DeployedEmbedder(trained(kind))
        assert deployed.hidden is not None
        parts = nn.ModuleList([deployed.backbone, deployed.hidden, deployed.head])
        assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in parts.modules()), kind
        assert not deployed.head.training
        assert not any(p.requires_grad for p in deployed.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_original_stays_as_it_was(dtype: torch.dtype) -> None:
    embedder = trained("resnet18").train()
    before = {k: v.clone() for k, v in embedder.state_dict().items()}
    deployed = DeployedEmbedder(embedder, dtype=dtype)
    with torch.inference_mode():
        deployed(image(2, 64))
    for p in deployed.parameters():
        p.data.zero_()
    after = embedder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert embedder.training
    assert embedder.backbone.layer1[0].bn1.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in embedder.parameters())


@pytest.mark.parametrize("kind", ["resnet_tiny", "resnet_tiny normed"])
@pytest.mark.parametrize("level", [None, (64, 64), (40, 72), (160, 96)])
@torch.inference_mode()
def test_raster_values_projected_at_once(kind: str, level: tuple[int, int] | None) -> None:
    """As normalised, resized and projected one after the other."""
    embedder = trained(kind)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 4000, (4, 64, 64)).astype(np.uint16))
    own = Radiometry(BANDS, 2047.0, (0.2, 0.3, 0.25, 0.6), (0.05, 0.08, 0.1, 0.2))
    deployed = DeployedEmbedder(embedder)
    chips = own.normalise(raw)[None]
    if level is not None:
        chips = resize(chips, *level)
    found = deployed.project(raw, own, level)
    torch.testing.assert_close(found, embedder.projection(chips), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deployed.embed_projected(found), embedder(chips), rtol=0, atol=1e-4)
