from __future__ import annotations

import logging
import os
import pickle
import socket
import urllib.request
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STAGES, STRIDES, Backbone


@pytest.fixture(scope="module")
def donor() -> dict[str, Tensor]:
    """The state of a torchvision ResNet18 whose weights nothing else has."""
    torch.manual_seed(77)
    state = resnet18().state_dict()
    return {k: v + 0.25 if k.endswith("bn1.weight") else v for k, v in state.items()}


def same(backbone: Backbone, donor: dict[str, Tensor], *stages: str) -> bool:
    """Whether every weight of these stages is the donor's."""
    own = backbone.state_dict()
    renamed = {k.replace("conv1.", "stem.0.", 1) if k.startswith("conv1.") else k: v for k, v in donor.items()}
    renamed = {k.replace("bn1.", "stem.1.", 1) if k.startswith("bn1.") else k: v for k, v in renamed.items()}
    keys = [k for k in own if k.split(".")[0] in stages]
    assert keys
    return all(torch.equal(own[k], renamed[k]) for k in keys)


def test_v1_strides_in_the_first_1x1_and_v15_in_the_3x3() -> None:
    new, old = Backbone("resnet50"), Backbone("resnet50", variant="v1")
    for stage in ("layer2", "layer3", "layer4"):
        first, other = getattr(new, stage)[0], getattr(old, stage)[0]
        assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2))
        assert (other.conv1.stride, other.conv2.stride) == ((2, 2), (1, 1))
        assert first.downsample[0].stride == other.downsample[0].stride == (2, 2)
    assert new.layer1[0].conv2.stride == old.layer1[0].conv1.stride == (1, 1)
    assert new.stem[1].eps == 1e-5
    assert old.stem[1].eps == 1.001e-5
    old.load_state_dict(new.state_dict())
    x = torch.randn(1, 3, 64, 64)
    new.eval(), old.eval()
    with torch.inference_mode():
        a, b = new(x), old(x)
    assert a.shape == b.shape == (1, 2048, 2, 2)
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("side", [64, 65, 33])
def test_every_stage_has_its_stride(side: int) -> None:
    backbone = Backbone("resnet_tiny").eval()
    for stage, channels in zip(STAGES, (8, 8, 16, 24, 32), strict=True):
        cells = -(-side // STRIDES[stage])
        assert backbone(torch.zeros(1, 3, side, side), until=stage).shape == (1, channels, cells, cells)
    assert backbone.width == 32
    with pytest.raises(ValueError, match="no stage"):
        backbone(torch.zeros(1, 3, 64, 64), until="layer5")


@pytest.mark.parametrize(("after", "until"), [("layer2", "layer3"), ("stem", "layer4"), ("layer1", "layer2")])
def test_going_on_from_a_stage_is_going_there_at_once(after: str, until: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone("resnet_tiny").eval()
    x = torch.randn(2, 3, 65, 48)
    with torch.inference_mode():
        at_once, in_two = backbone(x, until), backbone(backbone(x, after), until, after)
        with pytest.raises(ValueError, match="no stage"):
            backbone(at_once, until=after, after=until)
    assert torch.equal(at_once, in_two)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="vgg16"):
        Backbone("vgg16")
    with pytest.raises(InputError, match="neither v1 nor"):
        Backbone("resnet18", variant="v2")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module.", "backbone."])
def test_loads_pth(wrap: str, donor: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content: dict[str, Any] = donor
    if wrap.endswith("."):
        content = {wrap + k: v for k, v in donor.items()}
    elif wrap == "state_dict":
        content = {"state_dict": donor, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    backbone = Backbone("resnet18", weights=str(tmp_path / "w.pth"))
    assert same(backbone, donor, *STAGES)
    assert not caplog.records


def test_loads_safetensors(donor: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(donor, tmp_path / "w.safetensors")
    assert same(Backbone("resnet18", weights=str(tmp_path / "w.safetensors")), donor, *STAGES)
    assert not caplog.records


def test_a_partial_file_loads_what_it_has_and_says_what_it_lacks(
    donor: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = {k: v for k, v in donor.items() if not k.startswith(("layer4", "fc"))}
    save_file(part, tmp_path / "part.safetensors")
    with caplog.at_level(logging.WARNING):
        backbone = Backbone("resnet18", weights=str(tmp_path / "part.safetensors"))
    assert same(backbone, donor, "stem", "layer1", "layer2", "layer3")
    assert not same(backbone, donor, "layer4")
    (record,) = caplog.records
    assert "layer4 (25 tensors)" in record.getMessage()  # 5 convolutions, 5 BatchNorms of 4 tensors
    assert "layer3" not in record.getMessage()


def test_weights_of_another_shape_are_refused(donor: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**donor, "layer1.0.conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight does not fit resnet18"):
        Backbone("resnet18", weights=str(tmp_path / "w.pth"))


def test_a_file_without_a_known_key_is_refused(tmp_path: Path) -> None:
    torch.save({"blocks.0.weight": torch.zeros(3)}, tmp_path / "vit.pth")
    with pytest.raises(InputError, match="holds no weight of resnet18"):
        Backbone("resnet18", weights=str(tmp_path / "vit.pth"))
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds no weight of resnet18"):
        Backbone("resnet18", weights=str(tmp_path / "list.pth"))


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name}: no such weights file"):
        Backbone("resnet18", weights=str(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(suffix: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"broken{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken{suffix} cannot be read as weights") as caught:
        Backbone("resnet18", weights=str(file))
    assert "\n" not in str(caught.value)


class Evil:
    """Unpickled, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("raw", [True, False])
def test_a_malicious_pickle_is_not_run(raw: bool, tmp_path: Path) -> None:
    proof = tmp_path / "was_here"
    evil = {"layer1.0.conv1.weight": Evil(f"touch {proof}")}
    file = tmp_path / "evil.pth"
    if raw:
        file.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, file)
    with pytest.raises(InputError, match=r"evil\.pth cannot be read as weights"):
        Backbone("resnet18", weights=str(file))
    assert not proof.exists()
    if raw:  # and it would have bitten
        pickle.loads(file.read_bytes())
        assert proof.exists()


def test_unknown_weights_name_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"neither a file nor torchvision weights of resnet18 \(IMAGENET1K_V1\)"):
        Backbone("resnet18", weights="IMAGENET22K")


def test_without_a_network_the_sentence_names_both_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[float | None] = []

    def unreachable(*args: object, **kwargs: object) -> NoReturn:
        seen.append(socket.getdefaulttimeout())
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    before = socket.getdefaulttimeout()
    with pytest.raises(InputError) as caught:
        Backbone("resnet18", weights="IMAGENET1K_V1")
    sentence = str(caught.value)
    assert "no route" in sentence
    assert "model.weights=<file.pth or .safetensors>" in sentence
    assert "model.weights=null" in sentence
    assert "\n" not in sentence
    assert seen == [10.0], "a download must not wait for ever"
    assert socket.getdefaulttimeout() == before


def test_a_name_downloads_that_models_weights(
    donor: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def download(url: str, *args: object, **kwargs: object) -> dict[str, Tensor]:
        asked.append(url)
        return donor

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert same(Backbone("resnet18", weights="IMAGENET1K_V1"), donor, *STAGES)
    assert len(asked) == 1
    assert "resnet18" in asked[0]
