from __future__ import annotations

import sys

import pytest
import torch
from omegaconf import OmegaConf

from siamese_sat.errors import InputError
from siamese_sat.scaleout.choose import open_pool
from siamese_sat.scaleout.cluster import RayPool, Share
from siamese_sat.scaleout.local import Processes


def local(devices: list[str] | None) -> object:
    return OmegaConf.create({"name": "local", "devices": devices, "split_mpx": 256})


def test_one_device_is_this_process_and_several_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_pool(local(None), "cpu") as pool:  # type: ignore[arg-type]
        assert pool is None
    with open_pool(local(["cpu", "cpu"]), "auto") as pool:  # type: ignore[arg-type]
        assert pool == Processes([torch.device("cpu")] * 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with open_pool(local(None), "auto") as pool:  # type: ignore[arg-type]
        assert pool == Processes([torch.device("cuda", n) for n in range(4)])
    for one in ("cuda:1", "cpu"):
        with open_pool(local(None), one) as pool:  # type: ignore[arg-type]
            assert pool is None
    with pytest.raises(InputError, match="no device"), open_pool(local(["tpu0"]), "auto"):  # type: ignore[arg-type]
        pass


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "siamese-sat\[ray\]"'):
        RayPool(None, Share())


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "127.0.0.1:9"])
def test_an_address_where_nothing_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a cluster that this process has joined already no address is asked.
    pytest.importorskip("ray").shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=f"No Ray cluster answers at {address}") as told:
        RayPool(address, Share())
    assert "\n" not in str(told.value)
