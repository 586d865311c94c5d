"""All devices of one machine: a process for each, which takes the next item when it is done with one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from siamese_sat.errors import InputError
from siamese_sat.scaleout.pool import Item, Work, attempt, set_threads, threads_of
from siamese_sat.scaleout.ship import pack, unpack

_work: list[Work] = []  # of this worker process


@dataclass(frozen=True)
class Processes:
    """A process per device. Threads would wait for each other: the work between two kernels is Python's.

    Attributes:
        devices: such as ``cuda:0``; one may be named twice.
    """

    devices: Sequence[torch.device]

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        """See `siamese_sat.scaleout.pool.Pool`.

        Raises:
            InputError: a process died.
        """
        # Not forked: neither CUDA nor LanceDB survives that.
        context = multiprocessing.get_context("spawn")
        devices = context.SimpleQueue()
        for device in self.devices:
            devices.put(str(device))
        threads = threads_of(max(1, (os.cpu_count() or 1) // len(self.devices)))
        with ProcessPoolExecutor(
            len(self.devices), mp_context=context, initializer=_start, initargs=(pack(work), devices, threads)
        ) as executor:
            futures = {executor.submit(_do, item): number for number, item in enumerate(items)}
            try:
                for future in as_completed(futures):
                    yield futures.pop(future), future.result()
            except BrokenProcessPool as error:
                raise InputError(
                    f"A worker process on {', '.join(map(str, self.devices))} could not start or died, often for lack "
                    f"of memory; lower search.batch_size, or name fewer engine.devices."
                ) from error
            finally:
                executor.shutdown(wait=False, cancel_futures=True)


def _start(data: bytes, devices: Any, threads: int) -> None:  # noqa: ANN401 - multiprocessing's queue has no type
    set_threads(threads)
    device = torch.device(devices.get())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _work.append(unpack(data, device))


def _do(item: Item) -> Any:  # noqa: ANN401 - whatever the work gives
    return attempt(_work[0], item)
