from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamese_sat.device import cpu_has_bf16
from siamese_sat.errors import InputError
from siamese_sat.model.atrous import Finer
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.runtime import RUNTIMES, Runner, pick_runtime
from siamese_sat.model.vino import OpenVINO, openvino_module
from siamese_sat.scaleout.ship import pack, unpack
from siamese_sat.settings import SEARCH_CHOICES
from tests.conftest import skip_without_openvino
from tests.model.test_deploy import trained

CPU = torch.device("cpu")
OTHERS = ["openvino", pytest.param("compile", marks=pytest.mark.slow)]
# Odd ones, small ones, and one that comes again: what was compiled for one size is used for another.
SIZES = [(64, 64), (75, 131), (9, 40), (160, 96), (64, 64)]
with_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is an extra")


def deployed(kind: str, runtime: str, dtype: torch.dtype = torch.float32) -> DeployedEmbedder:
    if runtime == "openvino":
        skip_without_openvino()
    return DeployedEmbedder(trained(kind), CPU, dtype, runtime)


def images(count: int, height: int, width: int, channels: int = 4) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(height))


def same(found: Tensor, wanted: Tensor) -> None:
    """The same cells, type, and layout: channels last."""
    assert found.dtype == wanted.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert wanted.float().std() > 1e-2, "cells that are all alike prove nothing"
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        return
    cosine = F.cosine_similarity(found.float(), wanted.float(), dim=1)
    assert cosine.shape == (len(wanted), *wanted.shape[2:])
    assert cosine.min() >= 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("runtime", OTHERS)
def test_stages_are_those_of_pytorch(runtime: str, dtype: torch.dtype) -> None:
    eager, other = deployed("resnet18", "eager", dtype), deployed("resnet18", runtime, dtype)
    for height, width in SIZES:
        x = images(1, height, width)
        wanted, found = eager.features(x, "layer2"), other.features(x, "layer2")
        same(found, wanted)
        same(other.further(wanted, "layer3", "layer2"), eager.further(wanted, "layer3", "layer2"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("runtime", OTHERS)
def test_windows_are_those_of_pytorch(runtime: str, dtype: torch.dtype) -> None:
    eager, other = deployed("resnet18", "eager", dtype), deployed("resnet18", runtime, dtype)
    for count in (8, 1, 5):
        x = images(count, 64, 64, 3) * torch.linspace(0.2, 3, count)[:, None, None, None]
        wanted, found = eager.embed_projected(x), other.embed_projected(x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.01)
    assert (wanted[0] - wanted[1]).abs().max() > 0.05
    torch.testing.assert_close(other(images(2, 64, 64)), eager(images(2, 64, 64)), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", ["resnet50", "resnet50 v1", "resnet_tiny normed"])
@with_openvino
def test_other_networks(kind: str) -> None:
    eager, other = deployed(kind, "eager"), deployed(kind, "openvino")
    for height, width in SIZES[:2]:
        x = images(2, height, width)
        same(other.features(x), eager.features(x))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("runtime", OTHERS)
def test_finer_cells(runtime: str, stride: int) -> None:
    other = deployed("resnet_tiny", runtime)
    finer = Finer(other.backbone, stride)
    run = other.runner("finer", lambda: finer)
    for height, width in SIZES[:2]:
        x = images(1, height, width, 3)
        wanted = finer(x)
        assert isinstance(wanted, Tensor)
        same(run(x), wanted)


@pytest.mark.parametrize("layout", ["sliced", "channels first", "half"])
@with_openvino
def test_images_as_they_lie(layout: str) -> None:
    eager, other = deployed("resnet_tiny", "eager"), deployed("resnet_tiny", "openvino")
    x = images(2, 80, 96, 3)
    if layout == "sliced":
        x = x.contiguous(memory_format=torch.channels_last)[:, :, 3:67, 5:70]
    if layout == "half":
        x = x.half()
    run, wanted = other.runner("backbone", lambda: other.backbone), eager.backbone(x.float())
    before = x.clone()
    same(run(x), wanted)
    assert torch.equal(x, before)


@with_openvino
def test_the_same_bits_whatever_came_before_and_with_any_threads() -> None:
    x, y = images(1, 75, 131, 3), images(3, 96, 64, 3)  # as projected, which PyTorch does
    before = torch.get_num_threads()
    found = []
    try:
        for threads, order in ((1, (x, y)), (2, (y, x)), (1, (y, y, x))):
            torch.set_num_threads(threads)
            other = deployed("resnet18", "openvino")
            run = other.runner("backbone", lambda one=other: one.backbone)  # type: ignore[misc]
            results = [run(image) for image in order]
            found.append(next(r for r, image in zip(results, order, strict=True) if image is x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(f, found[0]) for f in found)


@with_openvino
def test_a_result_stays_when_another_comes() -> None:
    other = deployed("resnet_tiny", "openvino")
    first = other.features(images(1, 64, 64))
    kept = first.clone()
    second = other.features(images(1, 64, 64) * 2)
    assert torch.equal(first, kept)
    assert not torch.equal(second, kept)


@with_openvino
def test_as_many_threads_as_pytorch_has() -> None:
    compiled = []
    before = torch.get_num_threads()
    runner = Runner(deployed("resnet_tiny", "eager").backbone, "openvino", torch.float32)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runner(images(1, 64, 64, 3))
            assert runner._made is not None
            run = runner._made[1]
            assert isinstance(run, OpenVINO)
            compiled.append(int(run.compiled.get_property("INFERENCE_NUM_THREADS")))
            assert run.compiled.get_property("ENABLE_CPU_PINNING") is False
    finally:
        torch.set_num_threads(before)
    assert compiled == [1, min(2, len(os.sched_getaffinity(0)))]


@pytest.mark.parametrize(("dtype", "hint"), [(torch.float32, "f32"), (torch.bfloat16, "bf16")], ids=["fp32", "bf16"])
@with_openvino
def test_it_computes_in_the_precision_asked_for(dtype: torch.dtype, hint: str) -> None:
    network = deployed("resnet_tiny", "eager", dtype).backbone
    run = OpenVINO(network, dtype, 3)
    # On a CPU that has no bf16 OpenVINO computes in fp32 whatever it is told.
    wanted = hint if cpu_has_bf16() else "f32"
    assert run.compiled.get_property("INFERENCE_PRECISION_HINT") == getattr(openvino_module().Type, wanted)


@with_openvino
def test_threads_may_share_it() -> None:
    other = deployed("resnet_tiny", "openvino")
    many = [images(1, 64 + 8 * (i % 4), 64) for i in range(16)]
    alone = deployed("resnet_tiny", "openvino")
    wanted = [alone.features(x) for x in many]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(other.features, many))
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("way", ["pickle", "copy", "ship"])
@pytest.mark.parametrize("runtime", ["eager", *OTHERS])
def test_it_can_be_sent_after_it_has_run(runtime: str, way: str) -> None:
    first = deployed("resnet_tiny", runtime)
    x = images(2, 64, 64)
    wanted = first(x)
    other: DeployedEmbedder = (
        pickle.loads(pickle.dumps(first)) if way == "pickle"
        else copy.deepcopy(first) if way == "copy"
        else unpack(pack(first), CPU)
    )  # fmt: skip
    assert all(r._made is None for r in other._runners.values())
    assert torch.equal(other(x), wanted)
    # Its weights, not those of the one that it comes from.
    assert {id(p) for p in other._runners["layer4", None].network.parameters()} == {
        id(p) for p in other.backbone.parameters()
    }


def test_auto_picks_openvino_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec("openvino") is not None
    for dtype in (torch.float32, torch.bfloat16):
        assert pick_runtime("auto", CPU, dtype) == ("openvino" if there else "eager")
    assert pick_runtime("auto", CPU, torch.float16) == "eager"
    assert pick_runtime("auto", torch.device("cuda"), torch.float16) == "cudagraph"
    for name in ("eager", "compile"):
        assert pick_runtime(name, CPU, torch.float32) == name
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert pick_runtime("auto", CPU, torch.float32) == "eager"


def test_settings_know_all_runtimes() -> None:
    assert SEARCH_CHOICES["search.runtime"] == RUNTIMES


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="runtime='onnx' is none of auto, eager, cudagraph, compile, openvino"):
        DeployedEmbedder(trained("resnet_tiny"), runtime="onnx")
    with pytest.raises(InputError, match="runtime=openvino runs on the CPU, not on cuda:1"):
        pick_runtime("openvino", torch.device("cuda:1"), torch.float16)
    with pytest.raises(InputError, match=r"runtime=cudagraph runs on a GPU, not on cpu; set search\.runtime=auto"):
        DeployedEmbedder(trained("resnet_tiny"), runtime="cudagraph")
    with pytest.raises(InputError, match="computes in fp32 or bf16"):
        pick_runtime("openvino", CPU, torch.float16)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r'needs OpenVINO: pip install "siamese-sat\[openvino\]"\.'):
        DeployedEmbedder(trained("resnet_tiny"), runtime="openvino")


def test_an_openvino_that_cannot_be_imported_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('a library is missing')")
    for name in [n for n in sys.modules if n.split(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert pick_runtime("auto", CPU, torch.float32) == "eager"
    assert "a library is missing" in caplog.text


@with_openvino
def test_it_is_not_imported_until_it_is_used_and_reports_nothing() -> None:
    """In a process of its own: this one may have imported anything."""
    code = """
import sys
from siamese_sat.model.runtime import Runner, pick_runtime
import siamese_sat.search.engine, torch
assert "openvino" not in sys.modules
Runner(torch.nn.Conv2d(3, 4, 3), "openvino", torch.float32)(torch.zeros(1, 3, 16, 16))
assert "openvino" in sys.modules
assert not [m for m in sys.modules if m.startswith("openvino_telemetry")], "it would report"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    code = """
import torch
from siamese_sat.errors import InputError
from siamese_sat.model.runtime import Runner
try:
    Runner(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU()),
           "compile", torch.float32)(torch.zeros(1, 3, 16, 16))
except InputError as error:
    assert "C++ compiler" in str(error), error
else:
    raise SystemExit("it compiled without a compiler")
"""
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_eager_is_the_network_itself() -> None:
    network = nn.Conv2d(3, 4, 3)
    x = images(1, 16, 16, 3).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(Runner(network, "eager", torch.float32)(x), network(x))
