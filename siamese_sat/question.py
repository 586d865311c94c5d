"""What decides what a search finds, in one number: an interrupted search goes on only where it is the same."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from omegaconf import DictConfig, OmegaConf
from rasterio.errors import RasterioError
from torch import Tensor

from siamese_sat.data.remote import S3
from siamese_sat.data.scene import Scene
from siamese_sat.data.source import REMOTE
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.index.entry import signature, to_json
from siamese_sat.search.index.recipe import weights_hash
from siamese_sat.search.parts import Parts

log = logging.getLogger(__name__)

# Settings that change where and how fast a search is done, or what is made of it afterwards. With truth everything is
# scored: that is in the thresholds.
LEFT_OUT = (
    "engine", "output", "paths", "truth", "search.parts_dir", "search.batch_size", "search.device", "search.precision",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """All that decides what a search finds, beside its settings and scenes.

    Attributes:
        model: that searches.
        engine: that runs it.
        exemplars: that the method is prepared with, those that joined too.
        negatives: likewise.
    """

    model: TrainedModel
    engine: Engine
    exemplars: Sequence[Exemplar]
    negatives: Sequence[Exemplar]

    def parts(self, cfg: DictConfig, scenes: Mapping[str, Scene], least: Mapping[str, float]) -> Parts | None:
        """Where ``search.parts_dir`` keeps the scenes that this search is done with; None where it keeps none.

        Args:
            cfg: as ``conf/search.yaml`` composes it.
            scenes: all, by name. One that changes may change what is found in the others, whose background it is.
            least: score of a place that counts, by class.
        """
        place = cfg.search.get("parts_dir")
        if place is None:
            return None
        if str(place).startswith(S3):
            # Their sum is one upload for every scene, and the folder that results wait in is another at every start.
            log.info("With results in s3://, an interrupted search goes on if search.parts_dir is a folder here.")
            return None
        signed: dict[str, list[Any]] = {}
        model = {f.name: getattr(self.model, f.name) for f in fields(self.model) if f.name not in ("embedder", "path")}
        shown = [
            [(e.class_name, e.box, _scene(e.scene, signed)) for e in group]
            for group in (self.exemplars, self.negatives)
        ]
        whole = [
            program(), _settings(cfg), weights_hash(self.model, None), self.model.embedder.spec, model,
            self.engine.device.type, str(self.engine.dtype), getattr(self.engine.embedder, "runtime", "eager"),
            shown, dict(least),
            [(name, _scene(scene, signed)) for name, scene in scenes.items()],
        ]  # fmt: skip
        try:
            return Parts(Path(str(place)).expanduser(), fingerprint(whole))
        except TypeError as error:  # what only saves work must not end it
            log.warning("Interrupted, this search would begin again: %s", error)
            return None


def fingerprint(thing: Any) -> str:  # noqa: ANN401 - anything that consists of plain values
    """SHA-256 of plain values, tensors, arrays and dataclasses, nested in any way.

    Raises:
        TypeError: something else is among them, of which it cannot be said whether it is the same.
    """
    found = hashlib.sha256()
    _feed(found.update, thing)
    return found.hexdigest()


def _feed(into: Callable[[bytes], None], thing: Any) -> None:  # noqa: ANN401 - see `fingerprint`
    if isinstance(thing, Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray):
        into(f"array {thing.dtype} {thing.shape} ".encode())
        into(np.ascontiguousarray(thing).tobytes())
    elif is_dataclass(thing):
        _feed(into, {field.name: getattr(thing, field.name) for field in fields(thing)})
    elif isinstance(thing, Mapping):
        _feed(into, list(thing.items()))
    elif isinstance(thing, list | tuple):
        into(f"{len(thing)} of ".encode())
        for one in thing:
            _feed(into, one)
    elif thing is None or isinstance(thing, str | int | float | np.generic):
        # Lengths and types are told, so that no two lists read alike.
        text = repr(thing).encode(errors="surrogateescape")
        into(f"{type(thing).__name__} {len(text)} ".encode() + text)
    else:
        raise TypeError(f"{type(thing).__name__} has no fingerprint.")


def _settings(cfg: DictConfig, head: str = "") -> dict[str, Any]:
    """All settings but those that do not matter, which may not even be known here (a run's own folder)."""
    found: dict[str, Any] = {}
    for key in map(str, cfg):
        name = f"{head}{key}"
        if name not in LEFT_OUT:
            value = cfg[key]
            if isinstance(value, DictConfig):
                value = _settings(value, f"{name}.")
            plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            found[key] = str(plain) if isinstance(plain, Path) else plain
    return found


def _scene(scene: Scene, signed: dict[str, list[Any]]) -> tuple[str, list[Any]]:
    """A scene, and its files as they are now, each asked once; of remote ones nothing is asked, see `Signature`."""
    if scene.path not in signed:
        signed[scene.path] = [signature(scene.path), *_beside(scene.path)]
    return to_json(scene), signed[scene.path]


def _beside(path: str) -> list[tuple[str, int, int]]:
    """Size and time of modification of what a raster consists of besides: masks, headers, what a .vrt puts together."""
    if path.startswith(REMOTE):
        return []
    try:
        with rasterio.open(path) as source:
            files = sorted(set(map(str, source.files)) - {path})
    except RasterioError:
        return []  # said when it is searched
    found = []
    for file in files:
        if not file.startswith(REMOTE) and Path(file).is_file():
            about = Path(file).stat()
            found.append((file, about.st_size, about.st_mtime_ns))
    return found


def program() -> list[str]:
    """What computes: of two versions, one may find what the other does not."""
    whole = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        whole.update(f"{file.relative_to(root)} ".encode() + file.read_bytes())
    return [whole.hexdigest(), torch.__version__]
