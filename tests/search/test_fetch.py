from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from siamese_sat.search.fetch import Fetched, one_behind


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_nothing_is_lost_and_each_comes_when_the_next_was_made(count: int) -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(count):
            made.append(number)
            yield number

    for number in one_behind(make()):
        assert made[-1] == min(number + 1, count - 1)
    assert list(one_behind(range(count))) == made == list(range(count))


def test_what_lies_in_host_memory_is_taken_as_it_is() -> None:
    tensor = torch.rand(3, 4)
    assert Fetched(tensor).get() is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_lies_on_a_gpu_arrives_whole() -> None:
    tensors = [torch.rand(500, 300, device="cuda") for _ in range(20)]
    fetched = [Fetched(t * 2) for t in tensors]
    for tensor, one in zip(tensors, fetched, strict=True):
        got = one.get()
        assert got.device.type == "cpu"
        assert torch.equal(got, tensor.cpu() * 2)
