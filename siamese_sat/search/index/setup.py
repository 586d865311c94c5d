"""From a model and settings to what makes vectors, or the same again from what an index says of itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safetensors.torch import load, save

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STRIDES
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.engine import Engine
from siamese_sat.search.index.encoder import EmbeddingEncoder, Encoder
from siamese_sat.search.index.features import BITS, FeatureEncoder, Whitenings
from siamese_sat.search.index.recipe import Recipe, weights_hash
from siamese_sat.search.index.store import Store
from siamese_sat.search.level import UNIT
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.whiten import Whitening

log = logging.getLogger(__name__)

# What a new index is made with where ``indexing`` leaves it open.
WINDOWS = (64, 128, 256)
STAGE, DIMENSIONS = "layer2", 64


@dataclass(frozen=True)
class Setup:
    """What makes an index's vectors.

    Attributes:
        recipe: what it is made with.
        encoder: that does it.
    """

    recipe: Recipe
    encoder: Encoder


def draft(
    model: TrainedModel,
    origin: str,
    per_scene: bool,
    min_valid: float,
    settings: Mapping[str, Any],
    known: Recipe | None,
) -> Recipe:
    """What this run would make an index with.

    Args:
        model: of the run.
        origin: the settings that gave the model, for the reader.
        per_scene: see `Recipe`.
        min_valid: see `Recipe`.
        settings: ``vectors``, ``windows``, ``stride``, ``stage``, ``dimensions``; what is None is as the index has it.
        known: what the index was made with, or None for a new one.

    Raises:
        InputError: a setting cannot be.
    """

    def choice(name: str, otherwise: Any) -> Any:  # noqa: ANN401 - a setting
        value = settings.get(name)
        return value if value is not None else getattr(known, name) if known is not None else otherwise

    vectors = str(choice("vectors", "embedding" if model.path else "features"))
    if vectors not in ("features", "embedding"):
        raise InputError(f"indexing.vectors={vectors!r} is neither features nor embedding.")
    if vectors == "embedding" and not model.path:
        log.warning("Embeddings of an untrained head say little; indexing.vectors=features finds more.")
    windows = tuple(sorted({int(w) for w in choice("windows", WINDOWS)}))
    if not windows or windows[0] < 8:
        raise InputError(f"indexing.windows={list(windows)} must list sides in pixels from 8 up.")
    stage, stride = str(choice("stage", STAGE)), int(choice("stride", model.chip.size // 2))
    if vectors == "features" and stage not in STRIDES:
        raise InputError(f"indexing.stage={stage!r} is none of {', '.join(STRIDES)}.")
    uneven = [w for w in windows if UNIT * w % model.chip.size]
    if vectors == "features" and uneven:
        raise InputError(
            f"indexing.windows: {uneven[0]} pixels do not become a chip of {model.chip.size} in whole steps of {UNIT}; "
            f"choose multiples of {model.chip.size // math.gcd(model.chip.size, UNIT)}."
        )
    size = int(model.embedder.spec.embedding_dim) if vectors == "embedding" else int(choice("dimensions", DIMENSIONS))
    return Recipe(
        vectors=vectors,
        weights=weights_hash(model, stage if vectors == "features" else None),
        model=origin,
        spec=model.embedder.spec.to_dict(),
        bands=tuple(model.bands),
        radiometry=model.radiometry.to_dict(),
        per_scene=per_scene,
        chip=model.chip.size,
        windows=windows,
        stride=stride,
        stage=stage,
        dimensions=size,
        min_valid=min_valid,
        cells=(stride // STRIDES[stage]) ** 2 * BITS // 8 if vectors == "features" else 0,
    )


def new_index(
    store: Store, recipe: Recipe, engine: Engine, radiometry_of: RadiometryOf, scenes: Sequence[Scene], shrinkage: float
) -> Setup:
    """Makes an empty index; features learn what is ordinary from these scenes, once and for ever."""
    tensors = {}
    if recipe.vectors == "features":
        bare = FeatureEncoder(engine, recipe.windows, recipe.chip, recipe.stride, recipe.stage)
        found = bare.fit(scenes, radiometry_of, recipe.dimensions, shrinkage)
        recipe = replace(recipe, dimensions=found.windows.axes.shape[1])  # no more than there are numbers to whiten
        tensors = {
            f"{name}_{part}": getattr(getattr(found, name), part).cpu().contiguous()
            for name in ("cells", "windows")
            for part in ("mean", "axes")
        }
    store.create(recipe.to_dict(), save(tensors), recipe.dimensions, recipe.cells)
    return Setup(recipe, encoder_of(recipe, engine, save(tensors)))


def encoder_of(recipe: Recipe, engine: Engine, tensors: bytes) -> Encoder:
    """The encoder that an index was made with."""
    if recipe.vectors == "embedding":
        return EmbeddingEncoder(engine, recipe.windows, recipe.chip, recipe.stride)
    held = {name: value.to(engine.device) for name, value in load(tensors).items()}
    whitening = Whitenings(
        Whitening(held["cells_mean"], held["cells_axes"]), Whitening(held["windows_mean"], held["windows_axes"])
    )
    return FeatureEncoder(engine, recipe.windows, recipe.chip, recipe.stride, recipe.stage, whitening)


def known_radiometry(recipe: Recipe) -> Radiometry:
    """The radiometry that an index's vectors were made with."""
    return Radiometry.from_dict(dict(recipe.radiometry))
