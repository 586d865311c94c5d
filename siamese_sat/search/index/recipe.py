"""What an index is made with: vectors made in another way cannot be compared with its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STAGES
from siamese_sat.model.checkpoint import TrainedModel


@dataclass(frozen=True)
class Recipe:
    """Everything that decides about a window's vector, in plain values.

    Attributes:
        vectors: ``features``, of a stage's cells whitened by the archive's background; ``embedding``, the
            head's unit vectors; ``foreign``, made elsewhere and imported.
        weights: SHA-256 of the weights that the vectors pass through.
        model: where these came from, for the reader.
        spec: of the embedder.
        bands: 1-based band numbers of the scenes.
        radiometry: of the model.
        per_scene: whether each scene is normalised by its own statistics instead.
        chip: side in pixels that a window is brought to.
        windows: sides in scene pixels.
        stride: between windows, of these ``chip`` pixels.
        stage: of the backbone, for ``features``.
        dimensions: of a vector.
        min_valid: windows with a smaller valid part are left out.
        cells: bytes of a window's own cells, kept beside its vector; 0: none are.
    """

    vectors: str
    weights: str
    model: str
    spec: Mapping[str, Any]
    bands: tuple[int, ...]
    radiometry: Mapping[str, Any]
    per_scene: bool
    chip: int
    windows: tuple[int, ...]
    stride: int
    stage: str
    dimensions: int
    min_valid: float
    cells: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The reverse of `to_dict`; what later versions add is not looked at."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{**known, "bands": tuple(known["bands"]), "windows": tuple(known["windows"])})

    def check(self, other: Recipe, uri: str) -> None:
        """Compares what an index was made with (this) with what a run would make.

        Raises:
            InputError: they differ; says in what, and what to do.
        """
        if self.vectors == "features" and not self.cells:
            raise InputError(
                f"{uri}: an earlier version made this index, and its vectors otherwise: index the scenes again, into "
                f"another place. (query.places may still be asked.)"
            )
        advice = {
            "weights": f"give {self.model}, with which it was made",
            "bands": f"set bands={list(self.bands)}".replace(" ", ""),
            "per_scene": f"set radiometry={'per_scene' if self.per_scene else 'model'}",
            "windows": "leave indexing.windows null",
            "stride": "leave indexing.stride null",
            "vectors": "leave indexing.vectors null",
            "stage": "leave indexing.stage null",
            "dimensions": "leave indexing.dimensions null",
            "min_valid": f"set search.min_valid={self.min_valid}",
            "spec": f"give {self.model}, with which it was made",
            "chip": f"give {self.model}, with which it was made",
            "radiometry": f"give {self.model}, with which it was made",
        }
        for name, remedy in advice.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                called = "settings of the network" if name == "spec" else name.replace("_", " ")
                shown = "" if name in ("weights", "spec", "radiometry") else f" ({mine}, here {theirs})"
                raise InputError(
                    f"{uri}: this index was made with other {called}{shown}: {remedy}, or make another index."
                )


def weights_hash(model: TrainedModel, until: str | None) -> str:
    """SHA-256 of an embedder's weights and of their names.

    Args:
        model: whose embedder is hashed, before it is deployed.
        until: the last backbone stage that counts, without the head; None for all.
    """
    later = tuple(f"backbone.{s}." for s in STAGES[STAGES.index(until) + 1 :]) if until else ()
    left_out = (*later, "head.") if until else ()
    found = hashlib.sha256()
    for name, value in sorted(model.embedder.state_dict().items()):
        if not name.startswith(left_out) and not name.endswith("num_batches_tracked"):
            found.update(name.encode())
            found.update(value.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return found.hexdigest()
