"""An embedder that is plain template correlation, and scenes in which every object's place is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import KEY, TrainedModel
from siamese_sat.model.embedder import EmbedderSpec
from siamese_sat.search.engine import Engine

Pixels = npt.NDArray[np.uint16]

BANDS = ("B", "G", "R", "NIR")
MEAN = (1000, 1200, 1400, 3000)
STD = (100, 150, 200, 400)
RADIOMETRY = Radiometry(BANDS, 10_000.0, tuple(m / 10_000 for m in MEAN), tuple(s / 10_000 for s in STD))
COSINE = Calibration(1.0, 0.0, "linear")  # scores are cosines, negative ones 0


class Means(nn.Module):
    """The 16 x 16 mean values of every band as channels of a single pixel; a backbone without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))  # a backbone has one; this goes round it

    def forward(self, x: Tensor, until: str = "layer4", after: str | None = None) -> Tensor:
        return F.adaptive_avg_pool2d(x, 16).flatten(1)[:, :, None, None]


class Correlation(nn.Module):
    """A chip's mean values as one unit vector, in the parts of an embedder: ground at the band mean is zero."""

    def __init__(self, spec: EmbedderSpec | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.projection, self.backbone, self.head = nn.Identity(), Means(), nn.Identity()
        self.batches: list[int] = []

    def load_state_dict(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - it has learned nothing
        return None

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return F.normalize(self.head(self.backbone(self.projection(x)).mean(dim=(2, 3))), dim=1)


def correlation_model(**changes: Any) -> TrainedModel:  # noqa: ANN401 - whatever a model has
    """A model of `Correlation`; ``changes`` replace what stands here."""
    fields: dict[str, Any] = {
        "embedder": Correlation(),
        "radiometry": RADIOMETRY,
        "chip": ChipSpec(),
        "bands": (1, 2, 3, 4),
        "classes": ("known",),
        "calibration": COSINE,
    }
    return TrainedModel(**{**fields, **changes})


def engine_of(model: TrainedModel, **options: Any) -> Engine:  # noqa: ANN401 - whatever an engine takes
    return Engine(model.embedder, torch.device("cpu"), **options)


def ground(height: int, width: int) -> Pixels:
    """``[4, height, width]``, every pixel at its band's mean."""
    return np.broadcast_to(np.array(MEAN, np.uint16)[:, None, None], (4, height, width)).copy()


def thing(seed: int, width: int, height: int, grain: int = 1) -> Pixels:
    """``[4, height, width]`` of noise round the mean, in grains of so many pixels; a seed is a class."""
    shape = (4, -(-height // grain), -(-width // grain))
    noise = np.random.default_rng(seed).normal(0, 1, shape).repeat(grain, 1).repeat(grain, 2)[:, :height, :width]
    values = np.array(MEAN)[:, None, None] + np.array(STD)[:, None, None] * noise
    return values.clip(1, None).round().astype(np.uint16)


def plant(pixels: Pixels, what: Pixels, x: int, y: int) -> tuple[int, int, int, int]:
    """Puts a thing's upper left pixel at (x, y); returns its box."""
    height, width = what.shape[1:]
    pixels[:, y : y + height, x : x + width] = what
    return x, y, x + width, y + height


def write_checkpoint(
    path: Path,
    *,
    bands: Sequence[str] = BANDS,
    calibration: Calibration = COSINE,
    prototypes: Mapping[str, Tensor] | None = None,
    extents: Mapping[str, tuple[float, float]] | None = None,
    thresholds: Mapping[str, float] | None = None,
    state: Mapping[str, Tensor] | None = None,
    spec: EmbedderSpec | None = None,
) -> str:
    """A checkpoint as training leaves it."""
    used = slice(0, len(bands))
    carried = {
        "spec": (spec or EmbedderSpec(tuple(bands))).to_dict(),
        "radiometry": Radiometry(tuple(bands), 10_000.0, RADIOMETRY.mean[used], RADIOMETRY.std[used]).to_dict(),
        "classes": list(prototypes or {}),
        "chip": {"size": 64, "padding": 0.15, "shape": "stretched"},
        "bands": list(range(1, len(bands) + 1)),
        "calibration": calibration.to_dict(),
        "prototypes": dict(prototypes or {}),
        "extents": dict(extents or {}),
        "thresholds": dict(thresholds or {}),
    }
    torch.save({KEY: carried, "state_dict": {f"embedder.{k}": v for k, v in (state or {}).items()}}, path)
    return str(path)
