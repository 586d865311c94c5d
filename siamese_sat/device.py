"""What this machine computes on, and how precisely."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from siamese_sat.errors import InputError

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; emulated, it is slower than fp32."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe is not None and probe())


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` takes a CUDA device where there is one.

    Raises:
        InputError: the device asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name!r} is no device; give auto, cpu, cuda or cuda:<number>.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name} is asked for, but no GPU is usable here; set device=cpu.")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Inference precision: ``auto`` is fp16 on a GPU, bf16 on a CPU that has it, else fp32.

    Raises:
        InputError: an unknown name.
    """
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name == "auto":
        chosen = "fp16" if device.type == "cuda" else "bf16" if cpu_has_bf16() else "fp32"
        log.info("Computing in %s on %s.", chosen, device)
        return known[chosen]
    if name not in known:
        raise InputError(f"precision={name!r} is none of auto, fp32, bf16, fp16.")
    return known[name]


def training_precision(name: str, accelerator: str) -> str:
    """Lightning's precision flag: ``auto`` is 16-mixed on a GPU, bf16-mixed on a CPU that has it, else 32-true.

    Asked for 16-mixed on a CPU, Lightning computes in bf16 without a word; here it is said. 16-true gives NaN there.
    """
    gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if name == "auto":
        name = "16-mixed" if gpu else "bf16-mixed" if cpu_has_bf16() else "32-true"
        log.info("Training in %s, which this machine has.", name)
    elif name in ("16-mixed", "16-true", "16") and not gpu:
        asked, name = name, "bf16-mixed" if cpu_has_bf16() else "32-true"
        log.warning("%s needs a GPU: training in %s instead.", asked, name)
    return name
