"""What runs a network: PyTorch as it is, replayed or compiled, or OpenVINO. The function is the same but for rounding.

Compiled networks take images of any size: what is made anew for each size would cost more than it wins where scenes
have tiles of many, and its bits could depend on which came first.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from siamese_sat.errors import InputError
from siamese_sat.model.vino import PRECISIONS, OpenVINO, openvino_module

log = logging.getLogger(__name__)

RUNTIMES = ("auto", "eager", "cudagraph", "compile", "openvino")
# Graphs that PyTorch may make of one network: sizes of 1 get one of their own, all others share one.
GRAPHS = 16
# A GPU that is given more pixels than this at once computes longer than Python takes to tell it what to compute.
REPLAYED = 512 * 64 * 64
# Of a process, for while one thread records no other may.
_recording = threading.Lock()


def pick_runtime(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """``auto`` is OpenVINO where it is installed and can do it, on a CPU in fp32 or bf16; on a GPU ``cudagraph``.

    Returns:
        ``eager``, ``cudagraph``, ``compile`` or ``openvino``.

    Raises:
        InputError: an unknown name, or one that cannot be had: OpenVINO is not installed, there is no GPU.
    """
    if name not in RUNTIMES:
        raise InputError(f"search.runtime={name!r} is none of {', '.join(RUNTIMES)}.")
    if name == "auto":
        if device.type == "cuda":
            return "cudagraph"
        return "openvino" if device.type == "cpu" and dtype in PRECISIONS and _usable() else "eager"
    if name == "cudagraph" and device.type != "cuda":
        raise InputError(f"search.runtime=cudagraph runs on a GPU, not on {device}; set search.runtime=auto.")
    if name == "openvino":
        if device.type != "cpu":
            raise InputError(f"search.runtime=openvino runs on the CPU, not on {device}; set search.device=cpu.")
        if dtype not in PRECISIONS:
            raise InputError("search.runtime=openvino computes in fp32 or bf16; set search.precision to one of them.")
        openvino_module()
    return name


def _usable() -> bool:
    if importlib.util.find_spec("openvino") is None:
        return False
    try:
        openvino_module()
    except InputError as error:
        log.warning("OpenVINO is installed, but cannot be imported (%s): PyTorch runs the network.", error.__cause__)
        return False
    return True


class Runner:
    """A network as a function of images, compiled for where it is first called.

    What is compiled stays in its process: a copy, or what is sent to another process, compiles its own. Threads may
    share a runner.

    Args:
        network: takes ``[N, C, H, W]``, gives ``[N, channels, h, w]``; its weights must not change once it has run.
        runtime: see `pick_runtime`.
        dtype: of its weights.
        batches: whether it runs over batches of images of one size: then a GPU may replay it.
    """

    def __init__(self, network: nn.Module, runtime: str, dtype: torch.dtype, batches: bool = False) -> None:
        self.network, self.runtime, self.dtype, self.batches = network, runtime, dtype, batches
        self._made: tuple[tuple[torch.device, int], Callable[[Tensor], Tensor]] | None = None
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """What the network gives ``[N, channels, h, w]``, in the weights' precision, channels last.

        Args:
            images: ``[N, C, H, W]`` of any precision and layout, where the network is.

        Raises:
            InputError: see `pick_runtime`; or there is nothing to compile with.
        """
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        with self._lock:
            # Threads are chosen when a network is compiled.
            key = images.device, torch.get_num_threads()
            if self._made is None or self._made[0] != key:
                self._made = key, self._make(images)
            run = self._made[1]
        return run(images)

    def _make(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        chosen = pick_runtime(self.runtime, images.device, self.dtype)
        if chosen == "openvino":
            try:
                return OpenVINO(self.network, self.dtype, images.shape[1])
            except Exception as error:  # of any kind: an operator that it does not know, a plugin that is not there
                if self.runtime == "openvino":
                    raise InputError(
                        f"search.runtime=openvino cannot run the network here ({_first_line(error)}); set "
                        "search.runtime=eager."
                    ) from error
                log.warning("OpenVINO cannot run the network (%s): PyTorch does.", _first_line(error))
                return self.network
        if chosen == "compile":
            return _compile_torch(self.network, images.device)
        return Replayed(self.network) if chosen == "cudagraph" and self.batches else self.network

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class Replayed:
    """A network on a GPU whose kernels are recorded once and then started together.

    Started one by one, those of a ResNet50 take Python 2 ms, as long as an H200 takes for 350 windows of 64 pixels
    (`benchmarks/search_speed.py`, bare): batches of 64 would leave it idle for most of the time. Recorded is the first
    size of no more than `REPLAYED` pixels that comes twice in a row, as full batches do; all others run as they are.
    Threads may share it.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self._lock = threading.Lock()
        self._last: torch.Size | None = None
        self._tried = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input = self._output = torch.empty(0)

    def __call__(self, images: Tensor) -> Tensor:
        """The network's output, a tensor of its own each time."""
        with self._lock:
            if not self._tried and images.shape == self._last and images[:, 0].numel() <= REPLAYED:
                self._tried = True
                try:
                    self._record(images)
                except RuntimeError as error:  # no memory for it, an operation that cannot be recorded
                    log.warning("The network cannot be recorded on the GPU (%s): it runs as it is.", _first_line(error))
            self._last = images.shape
            if self._graph is not None and images.shape == self._input.shape:
                self._input.copy_(images)
                self._graph.replay()
                return self._output.clone()
        return self.network(images)

    def _record(self, images: Tensor) -> None:
        with _recording, torch.cuda.device(images.device):
            graph, taken = torch.cuda.CUDAGraph(), images.clone(memory_format=torch.preserve_format)
            # Beside the current stream, where nothing else is started; what a first run makes is not recorded.
            current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                self.network(taken)
            current.wait_stream(beside)
            try:
                # Only this thread's: another one may be pinning the next tile.
                with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                    output = self.network(taken)
            finally:
                torch.cuda.set_stream(current)
        self._graph, self._input, self._output = graph, taken, output


def _compile_torch(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """By TorchInductor; on a CPU with the weights as constants, which it lays out for each convolution beforehand."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    # Before they were options of one network alone, all shared torch._dynamo's limit of 8.
    limits = {"recompile_limit": GRAPHS, "isolate_recompiles": True}
    known = limits.keys() & inspect.signature(torch.compile).parameters
    compiled: Callable[[Tensor], Tensor] = torch.compile(  # type: ignore[call-overload] # its stub is behind
        network,
        dynamic=True,
        options={"freezing": device.type == "cpu"},
        **{name: limits[name] for name in known},
    )

    def run(images: Tensor) -> Tensor:
        try:
            return compiled(images)
        except (TorchDynamoException, InductorError, InvalidCxxCompiler) as error:
            reason = _first_line(error)
            raise InputError(
                f"search.runtime=compile cannot compile the network here ({reason}); it needs a C++ compiler on a CPU "
                f"and Triton on a GPU: install that, or set search.runtime=eager."
            ) from error

    return run


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
