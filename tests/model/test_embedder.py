from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STAGES
from siamese_sat.model.embedder import OTHER_BANDS, Embedder, EmbedderSpec, build_embedder
from tests.model.conftest import tiny_embedder


def embedder(names: str, **options: str | bool) -> Embedder:
    torch.manual_seed(0)
    return build_embedder(
        names.split(), backbone="resnet_tiny", weights=None, hidden_dim=24, embedding_dim=16, **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("names", ["B G R NIR", "R G B NIR", "R G B", "B G R", "NIR R G B X5"])
def test_projection_passes_each_colour_to_its_channel(names: str) -> None:
    bands = names.split()
    x = torch.zeros(1, len(bands), 2, 2)
    for value, colour in enumerate("RGB", start=1):
        x[:, bands.index(colour)] = value * 10
    out = embedder(names).projection(x)
    for channel, expected in enumerate((10.0, 20.0, 30.0)):  # R, G, B: what ImageNet weights expect
        torch.testing.assert_close(out[0, channel], torch.full((2, 2), expected))


def test_nir_passes_a_little_to_all_channels_alike() -> None:
    x = torch.zeros(1, 4, 1, 1)
    x[:, 3] = 1
    out = embedder("B G R NIR").projection(x).flatten()
    torch.testing.assert_close(out, torch.full((3,), OTHER_BANDS / 3))
    assert 0 < OTHER_BANDS / 3 < 0.1


@pytest.mark.parametrize("names", ["PAN", "X1 X2"])
def test_without_colours_all_channels_get_the_mean(names: str) -> None:
    x = torch.rand(1, len(names.split()), 3, 3)
    out = embedder(names).projection(x)
    torch.testing.assert_close(out, x.mean(1, keepdim=True).expand(-1, 3, -1, -1))


def test_random_projection_is_random() -> None:
    one, two = (embedder("B G R NIR", projection_init="random") for _ in range(2))
    torch.manual_seed(5)
    three = Embedder(one.spec)
    assert torch.equal(one.projection[0].weight, two.projection[0].weight)
    assert not torch.equal(one.projection[0].weight, three.projection[0].weight)


def test_projection_norm_is_batchnorm_and_relu() -> None:
    plain, normed = embedder("B G R NIR"), embedder("B G R NIR", projection_norm=True)
    assert [type(m) for m in plain.projection] == [nn.Conv2d]
    assert [type(m) for m in normed.projection] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    out = normed.train().projection(torch.randn(8, 4, 16, 16))
    assert out.min() == 0
    assert 0.3 < out.mean() < 0.5  # of a rectified unit Gaussian: 0.399


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_float32_of_unit_length(dtype: torch.dtype) -> None:
    net = tiny_embedder().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = net(torch.randn(5, 4, 64, 64) * 7)
    assert out.shape == (5, 16)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
    assert out.std() > 0.01


def test_head_is_linear_batchnorm_relu_linear() -> None:
    head = build_embedder(["B", "G", "R", "NIR"], backbone="resnet50", weights=None).head
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert (head[0].in_features, head[0].out_features) == (2048, 512)
    assert (head[3].in_features, head[3].out_features) == (512, 128)


def statistics(net: Embedder) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items() if "running" in k or "num_batches" in k}


@pytest.mark.parametrize("stages", [(), ("layer4",), ("layer3", "layer4"), STAGES])
def test_frozen_stages_keep_their_statistics(stages: tuple[str, ...]) -> None:
    net = tiny_embedder()
    net.set_trainable(stages)
    net.train()
    before = statistics(net)
    net(torch.randn(4, 4, 64, 64)).sum().backward()
    after = statistics(net)
    for key, value in before.items():
        part = key.split(".")[1] if key.startswith("backbone.") else key.split(".")[0]
        moved = part in stages or part in ("projection", "head")
        assert torch.equal(value, after[key]) is not moved, key
    for name, parameter in net.named_parameters():
        part = name.split(".")[1] if name.startswith("backbone.") else name.split(".")[0]
        learns = part in stages or part in ("projection", "head")
        assert parameter.requires_grad is learns, name
        assert (parameter.grad is not None) is learns, name


def test_frozen_stages_stay_frozen_through_evaluation_and_thaw_again() -> None:
    net = tiny_embedder()
    net.set_trainable(["layer4"])
    net.eval()
    net.train()
    assert [getattr(net.backbone, s).training for s in STAGES] == [False] * 4 + [True]
    net.set_trainable(STAGES)
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    net.eval()
    net.set_trainable(["layer4"])
    assert not any(m.training for m in net.modules()), "choosing stages must not switch training on"


def test_trained_stages_may_keep_their_statistics() -> None:
    net = tiny_embedder()
    net.set_trainable(["layer4"], keep_statistics=True)
    net.eval()
    net.train()
    before = statistics(net)
    net(torch.randn(4, 4, 64, 64)).sum().backward()
    moved = {k.split(".")[0] for k, v in statistics(net).items() if not torch.equal(v, before[k])}
    assert moved == {"head"}
    norm = net.backbone.layer4[0].bn1
    assert norm.weight.grad is not None, "scale and shift learn"
    assert norm.weight.grad.abs().sum() > 0
    # What comes out is what comes out in evaluation: the batch does not matter.
    x = torch.randn(2, 4, 64, 64)
    training = net.features(x)
    torch.testing.assert_close(training, net.eval().features(x))
    net.set_trainable(["layer4"])
    assert net.train().backbone.layer4[0].bn1.training


def test_unknown_stage_is_refused() -> None:
    with pytest.raises(InputError, match="'conv5' is no backbone stage"):
        tiny_embedder().set_trainable(["conv5"])


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(InputError, match="projection_init"):
        EmbedderSpec(("PAN",), projection_init="zeros")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="embedding_dim"):
        EmbedderSpec(("PAN",), embedding_dim=0)


def test_spec_survives_plain_values() -> None:
    spec = EmbedderSpec(("R", "G", "B"), "resnet34", "v1", 10, 20, "random", True)
    values = spec.to_dict()
    assert values["band_names"] == ["R", "G", "B"]
    assert EmbedderSpec.from_dict(values) == spec
