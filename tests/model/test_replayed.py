"""What a GPU records and replays. Without a GPU only what decides it can be tested, see test_runtime.py."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from siamese_sat.model.runtime import Replayed, Runner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Counted(nn.Module):
    """A network that knows how often Python ran it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 8, 3)).cuda().half().eval()
        self.ran = 0

    def forward(self, x: Tensor) -> Tensor:
        self.ran += 1
        found: Tensor = self.net(x)
        return found


def images(count: int, seed: int, side: int = 32) -> Tensor:
    made = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return made.half().cuda().contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_what_is_replayed_is_what_the_network_gives() -> None:
    network = Counted()
    run = Replayed(network)
    batches = [images(8, seed) for seed in range(6)]
    found = [run(batch) for batch in batches]
    assert network.ran == 3  # once as it is, once to warm up, once to be recorded
    for batch, got in zip(batches, found, strict=True):  # of all of them: none was overwritten by the next
        assert torch.equal(got, network.net(batch))
    for count in (3, 8, 5):
        batch = images(count, 10 + count)
        assert torch.equal(run(batch), network.net(batch))


@torch.inference_mode()
def test_large_images_and_sizes_that_do_not_come_again_run_as_they_are() -> None:
    network = Counted()
    run = Replayed(network)
    for count in (1, 2, 3, 2, 1):
        run(images(count, 0))
    assert network.ran == 5
    large = images(1, 0, 1600)
    run(large), run(large), run(large)
    assert network.ran == 8


@torch.inference_mode()
def test_another_thread_may_pin_memory_while_it_is_recorded() -> None:
    stop = threading.Event()

    def pin() -> None:
        size = 1
        while not stop.is_set():
            torch.zeros(size % 1000 * 1000).pin_memory().cuda(non_blocking=True)
            size += 1

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        network = Counted()
        run = Runner(network, "auto", torch.float16, batches=True)
        batches = [images(8, seed) for seed in range(20)]
        found = [run(batch) for batch in batches]
        assert network.ran == 3
        assert all(torch.equal(got, network.net(batch)) for batch, got in zip(batches, found, strict=True))
    finally:
        stop.set()
        thread.join()


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Waits(Counted):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + float(x.sum() * 0)  # the GPU is waited for: that cannot be in a recording

    network = Waits()
    run = Replayed(network)
    batches = [images(4, seed) for seed in range(4)]
    assert all(torch.equal(run(batch), network.net(batch)) for batch in batches)
    assert caplog.text.count("cannot be recorded") == 1
