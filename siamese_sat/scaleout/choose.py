"""The workers that the setting ``engine`` means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from siamese_sat.device import pick_device
from siamese_sat.scaleout.local import Processes
from siamese_sat.scaleout.pool import Pool


@contextmanager
def open_pool(engine: DictConfig, device: str) -> Iterator[Pool | None]:
    """Workers, until the block ends; None where this process does all.

    Args:
        engine: as ``conf/engine`` has it.
        device: where to compute, as ``search.device`` has it.

    Raises:
        InputError: a device is not there, or Ray is not; see `siamese_sat.scaleout.cluster.RayPool`.
    """
    if engine.name == "ray":
        from siamese_sat.scaleout.cluster import RayPool, Share  # Ray is an extra

        workers = int(engine.workers) if engine.workers is not None else None
        share = Share(float(engine.cpus), float(engine.gpus), workers)
        chosen = None if device == "auto" else pick_device(device).type == "cuda"
        with RayPool(engine.address, share, chosen) as pool:
            yield pool
        return
    if engine.devices is not None:
        yield Processes([pick_device(str(name)) for name in engine.devices])
    elif device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        yield Processes([torch.device("cuda", number) for number in range(torch.cuda.device_count())])
    else:
        yield None
