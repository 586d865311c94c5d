"""A network compiled by OpenVINO for the CPU. OpenVINO is an extra: it is imported when it is used and not before."""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from siamese_sat.errors import InputError

# What it is told to compute in.
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
TELEMETRY = "openvino_telemetry"

_importing = threading.Lock()


def openvino_module() -> ModuleType:
    """OpenVINO itself, kept from reporting to its makers, which importing it would do.

    Raises:
        InputError: it is not installed.
    """
    with _importing:
        # Without this module it reports nothing, and it knows no setting that would say so.
        lent = sys.modules.get(TELEMETRY)
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise InputError('search.runtime=openvino needs OpenVINO: pip install "siamese-sat[openvino]".') from error
        finally:
            sys.modules.pop(TELEMETRY, None)
            if lent is not None:
                sys.modules[TELEMETRY] = lent
    module: ModuleType = openvino
    return module


class OpenVINO:
    """A network for images of any number and size, with as many threads as PyTorch has when this is made.

    One graph serves any size, and gives the same bits, whatever came before and with any number of threads.

    Args:
        network: takes ``[N, C, H, W]``, gives ``[N, channels, h, w]``; it may be let go afterwards.
        dtype: of its weights and of the computation, one of ``PRECISIONS``; fp32 is fp32 throughout.
        channels: C.

    Attributes:
        compiled: OpenVINO's own.

    Raises:
        InputError: OpenVINO is not installed.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, channels: int) -> None:
        ov = openvino_module()
        self._ov, self._dtype = ov, dtype
        self._type = ov.Type.bf16 if dtype == torch.bfloat16 else ov.Type.f32
        # In fp32, of which bf16 weights lose nothing: traced in bf16 they came out as garbage, for OpenVINO goes on
        # reading them where they lay after they are gone.
        network = copy.deepcopy(network).float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated, and what OpenVINO itself does first
            traced = torch.jit.trace(network, torch.zeros(1, channels, 64, 64), check_trace=False)
            model = ov.convert_model(traced, input=[ov.PartialShape([-1, channels, -1, -1])])
        # PyTorch's channels last, as they lie in memory, on both sides: nothing is turned or converted.
        laid = ov.preprocess.PrePostProcessor(model)
        for end in (laid.input(), laid.output()):
            end.tensor().set_layout(ov.Layout("NHWC")).set_element_type(self._type)
            end.model().set_layout(ov.Layout("NCHW"))
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Workers beside each other would all be pinned to the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        self.compiled = ov.Core().compile_model(laid.build(), "CPU", options)
        self._request = self.compiled.create_infer_request()
        self._lock = threading.Lock()
        # Without its weights, to tell the shape of what is to come.
        self._shadow = network.to("meta")
        self._shapes: dict[torch.Size, torch.Size] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Takes and gives tensors of its type, channels last, which are read and written where they lie."""
        with self._lock:  # a request is for one at a time
            if images.shape not in self._shapes:
                self._shapes[images.shape] = self._shadow(torch.empty(images.shape, device="meta")).shape
            found = torch.empty(self._shapes[images.shape], dtype=self._dtype, memory_format=torch.channels_last)
            self._request.set_input_tensor(self._wrapped(images))
            self._request.set_output_tensor(self._wrapped(found))
            self._request.infer()
        return found

    def _wrapped(self, tensor: Tensor) -> Any:  # noqa: ANN401 - OpenVINO's tensor, in the same memory
        rows = tensor.permute(0, 2, 3, 1)
        # NumPy knows no bf16.
        array = (rows.view(torch.int16) if self._dtype == torch.bfloat16 else rows).numpy()
        return self._ov.Tensor(array, self._ov.Shape(list(rows.shape)), self._type)
