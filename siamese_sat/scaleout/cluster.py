"""Workers as Ray actors: on the cores or GPUs of this machine, or of a running cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch

from siamese_sat.errors import InputError
from siamese_sat.scaleout.pool import AHEAD, Item, Work, attempt, set_threads, threads_of
from siamese_sat.scaleout.ship import pack, unpack

log = logging.getLogger(__name__)

# An item whose worker dies is done again so many times.
AGAIN = 1
# A worker that dies so often before it has begun is left out.
STARTS = 3
# Seconds without a free worker after which it is said.
PATIENCE = 60.0
# Seconds in which a cluster's address must answer.
ANSWER = 10.0


def ray_module() -> ModuleType:
    """Ray itself, told to send nothing to its makers.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What it would say about a change to come in what workers without a GPU see.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A paragraph on every worker that dies: ours is one sentence.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker died or was killed")
    try:
        import ray
    except ImportError as error:
        raise InputError('engine=ray needs Ray: pip install "siamese-sat[ray]".') from error
    module: ModuleType = ray
    return module


class Worker:
    """What runs in an actor's process.

    Args:
        device: ``cpu``, or ``cuda`` for the one GPU that Ray lets it see.
        threads: to compute with.
    """

    def __init__(self, device: str, threads: int) -> None:
        set_threads(threads)
        self.device = torch.device(device)

    def take(self, data: bytes) -> int:
        """Gets ready for a work; the number of its process."""
        self.work: Work = unpack(data, self.device)
        return os.getpid()

    def do(self, item: Item) -> Any:  # noqa: ANN401 - whatever the work gives
        """See `attempt`."""
        return attempt(self.work, item)


@dataclass(frozen=True)
class Share:
    """What a worker gets.

    Attributes:
        cpus: cores.
        gpus: GPUs; a part of one where several workers share it.
        workers: how many; None for as many as there is room for.
    """

    cpus: float = 1
    gpus: float = 0
    workers: int | None = None


class RayPool:
    """A `siamese_sat.scaleout.pool.Pool` of actors, which stay until it is closed; use as a context manager.

    Plain actors, and a loop of our own round ``ray.wait``: Ray's ActorPool leaves workers without work while the first
    item is not done, Ray Data gives no result for an item that killed its worker, and an actor's own
    ``max_task_retries`` waits for its restart, for ever where its machine is gone. Ray restarts the actors; an item
    whose worker died goes to whichever is free next.

    Args:
        address: None to start Ray here, ``auto`` or ``host:port`` to join what runs.
        share: of a worker; None for gpus takes a GPU where there is any.
        gpus_wanted: whether to compute on GPUs; None where there are any.

    Attributes:
        device: type of what the workers compute on.

    Raises:
        InputError: Ray is not installed, the address does not answer, or there is no room for a worker.
    """

    def __init__(self, address: str | None, share: Share, gpus_wanted: bool | None = None) -> None:
        self._ray = ray_module()
        self._started = not self._ray.is_initialized()
        if self._started:
            self._connect(address)
        try:
            self._hire(share, gpus_wanted)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and Ray where it was started here."""
        for actor in getattr(self, "actors", ()):
            with contextlib.suppress(Exception):  # it may be gone, and so may Ray
                self._ray.kill(actor)
        self.actors: list[Any] = []
        if self._started:
            self._ray.shutdown()

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        """See `siamese_sat.scaleout.pool.Pool`; an item that has killed two workers is an `InputError`.

        Raises:
            InputError: no worker stays alive.
        """
        ray = self._ray
        data = ray.put(pack(work))
        waiting, done, first = deque(range(len(items))), set[int](), 0
        deaths, starts = Counter[int](), Counter[int]()
        idle = deque[int]()
        # What each worker is at: an item, or getting ready, which it does again after it has died.
        doing: dict[Any, tuple[int, int | None]] = {a.take.remote(data): (n, None) for n, a in enumerate(self.actors)}
        self.processes: dict[int, int] = {}

        def hand_out() -> None:
            while idle and waiting and waiting[0] < first + AHEAD * len(self.actors):
                free, following = idle.popleft(), waiting.popleft()
                doing[self.actors[free].do.remote(items[following])] = free, following

        while len(done) < len(items):
            # An item whose worker died goes to who is idle: that worker may never come again.
            hand_out()
            if not doing:
                raise InputError("No worker of engine=ray stays alive; is there memory for engine.cpus workers?")
            ready, _ = ray.wait(list(doing), num_returns=1, timeout=PATIENCE)
            if not ready:
                self._tell_of_waiting(doing)
                continue
            number, item = doing.pop(ready[0])
            result: Any = None
            try:
                result = ray.get(ready[0])
            except ray.exceptions.RayTaskError:
                raise  # a fault of the program: all items would have it
            except ray.exceptions.RayError as error:
                starts[number] += item is None
                if starts[number] < STARTS:
                    self.actors[number] = self._actor()
                    doing[self.actors[number].take.remote(data)] = number, None
                if item is None:
                    log.debug("Worker %d: %s", number, error)
                    continue
                deaths[item] += 1
                if deaths[item] <= AGAIN:
                    log.warning("A worker died at %s; the item is done again.", items[item].path)
                    waiting.appendleft(item)
                    continue
                result = InputError(
                    f"{items[item].path}: its worker died {1 + AGAIN} times, killed or out of memory; give workers "
                    f"more memory (fewer engine.workers), or search it alone."
                )
            else:
                idle.append(number)
                if item is None:
                    self.processes[number], starts[number] = result, 0
            if item is not None:
                done.add(item)
                while first in done:
                    first += 1
                # Before the result is given away: whoever takes it may take its time.
                hand_out()
                yield item, result

    def _connect(self, address: str | None) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "ignore_reinit_error": True}
        # A terminal's answers are ours to give: no dashboard, and no server of metrics.
        here = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
        try:
            if address is not None and ":" in address and "://" not in address:
                # Ray itself would try for minutes.
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=ANSWER).close()
            self._ray.init(**here, **quiet)
        except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
            where = "Ray cannot be started here" if address is None else f"No Ray cluster answers at {address}"
            raise InputError(
                f"{where} ({_first_line(error)}); engine.address=null starts one, `ray start --head` makes one to join."
            ) from error

    def _hire(self, share: Share, gpus_wanted: bool | None) -> None:
        there = self._ray.cluster_resources()
        cores, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        per_worker = share.gpus if gpus_wanted or (gpus_wanted is None and gpus) else 0.0
        room = int(min(cores / share.cpus if share.cpus else 1e9, gpus / per_worker if per_worker else 1e9))
        if room < 1:
            raise InputError(
                f"There is no room for a worker of {share.cpus:g} core(s) and {per_worker:g} GPU(s): Ray has "
                f"{cores:g} core(s) and {gpus:g} GPU(s); set engine.cpus and engine.gpus."
            )
        count = min(room, share.workers) if share.workers is not None else room
        threads = threads_of(max(1, int(share.cpus)))
        options: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": per_worker, "max_restarts": 0}
        if threads > share.cpus:
            # Threads that outnumber their cores must not spin while they wait for each other.
            options["runtime_env"] = {"env_vars": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}}
        self.device = "cuda" if per_worker else "cpu"
        self._actor = partial(self._ray.remote(Worker).options(**options).remote, self.device, threads)
        self.actors = [self._actor() for _ in range(count)]
        log.info("%d worker(s) of %g core(s) and %g GPU(s) by Ray.", count, share.cpus, per_worker)

    def _tell_of_waiting(self, doing: dict[Any, tuple[int, int | None]]) -> None:
        unready = sum(item is None for _, item in doing.values())
        if unready == len(doing):
            log.warning("Waiting for Ray to start %d worker(s); is the cluster busy with something else?", unready)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
