"""What a finished training leaves behind in its checkpoint, and how search takes it up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.errors import InputError
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.embedder import Embedder, EmbedderSpec
from siamese_sat.model.statistics import FeatureStatistics

KEY = "siamese_sat"


@dataclass(frozen=True)
class TrainedModel:
    """An embedder with all that goes with it.

    Attributes:
        embedder: in evaluation mode, on the CPU.
        radiometry: of the training scenes.
        chip: how its chips were cut.
        bands: 1-based band numbers of the training scenes.
        classes: names of the class numbers.
        calibration: cosine to probability.
        thresholds: of best F1 by class, on validation chips.
        prototypes: unit vector ``[D]`` by class.
        extents: median width and height of its boxes in pixels, by class.
        background: features of random places of the training scenes, by stage; search leans on them in small scenes.
        path: of the checkpoint.
    """

    embedder: Embedder
    radiometry: Radiometry
    chip: ChipSpec
    bands: tuple[int, ...]
    classes: tuple[str, ...]
    calibration: Calibration
    thresholds: Mapping[str, float] = field(default_factory=dict)
    prototypes: Mapping[str, Tensor] = field(default_factory=dict)
    extents: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    background: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    path: str = ""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The raw content of a checkpoint that this product wrote; nothing in it is unpickled into code.

    Raises:
        InputError: missing, damaged, or somebody else's.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{path}: no such checkpoint; give the best.ckpt that train.py named at its end.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint ({reason}); is the file complete?") from error
    if not isinstance(content, dict) or KEY not in content:
        raise InputError(f"{path} is no checkpoint of siamese_sat; give the best.ckpt that train.py named at its end.")
    return content


def load_model(path: str | Path) -> TrainedModel:
    """Rebuilds a trained embedder from its checkpoint alone.

    Raises:
        InputError: see `read_checkpoint`.
    """
    content = read_checkpoint(path)
    carried = content[KEY]
    embedder = Embedder(EmbedderSpec.from_dict(carried["spec"]))
    prefix = "embedder."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    embedder.load_state_dict(state)
    embedder.eval().requires_grad_(False)
    calibration = Calibration(**carried["calibration"]) if "calibration" in carried else Calibration()
    return TrainedModel(
        embedder=embedder,
        radiometry=Radiometry.from_dict(carried["radiometry"]),
        chip=ChipSpec(**carried["chip"]),
        bands=tuple(carried["bands"]),
        classes=tuple(carried["classes"]),
        calibration=calibration,
        # They are probabilities by the calibration: where none was fitted, searched scenes say what a score means.
        thresholds=carried.get("thresholds", {}) if calibration.fitted else {},
        prototypes=carried.get("prototypes", {}),
        extents={k: (v[0], v[1]) for k, v in carried.get("extents", {}).items()},
        background={k: FeatureStatistics.from_dict(v) for k, v in carried.get("background", {}).items()},
        path=str(path),
    )


def add_to_checkpoint(path: str | Path, additions: Mapping[str, Any]) -> None:
    """Puts further plain values and tensors beside the weights; the file is replaced in one step."""
    content = read_checkpoint(path)
    content[KEY] = {**content[KEY], **additions}
    partial = Path(f"{path}.{os.getpid()}.part")
    torch.save(content, partial)
    partial.replace(path)
