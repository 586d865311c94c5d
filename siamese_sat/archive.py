"""A search by an index: a config in; scenes into the index, and answers out of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from siamese_sat.answering import Means, answer, answer_places
from siamese_sat.data.scene import Scene, open_scene
from siamese_sat.data.source import list_scenes
from siamese_sat.errors import InputError
from siamese_sat.holdings import exchange, needed, remove, show
from siamese_sat.outcome import SearchResult, nothing_found
from siamese_sat.search.exemplar import ExemplarSource
from siamese_sat.search.index.build import Built, build, outdated
from siamese_sat.search.index.entry import scene_path
from siamese_sat.search.index.recipe import Recipe
from siamese_sat.search.index.setup import Setup, draft, encoder_of, known_radiometry, new_index
from siamese_sat.search.index.store import Store
from siamese_sat.search.run import Workers
from siamese_sat.searching import find_bands, make_engine, plain, radiometry_rule, trained, unreadable, untrained
from siamese_sat.shown import check_shown

log = logging.getLogger(__name__)

# Scenes that are looked at to learn what an archive looks like, where nothing is known of it.
LOOKED_AT = 64


def ask_archive(cfg: DictConfig, folder: Path, workers: Workers | None = None) -> SearchResult:
    """Does what ``mode`` says with the index at ``index``.

    Args:
        cfg: as ``conf/search.yaml`` composes it.
        folder: for what is written.
        workers: that share the scenes, or None.

    Raises:
        InputError: a setting, the index, the checkpoint or the exemplars cannot be used.
    """
    store = Store(str(cfg.index))
    if cfg.mode == "info":
        return show(store, folder)
    if cfg.mode == "remove":
        return remove(store, plain(cfg.scenes), folder)
    if cfg.mode in ("export", "import"):
        return exchange(store, cfg.mode, cfg.exchange, folder)
    if cfg.aoi is not None:
        raise InputError("aoi is of a search without an index; query.area asks a part of an index.")
    paths = list_scenes(plain(cfg.scenes)) if cfg.scenes is not None else None
    if paths is None and cfg.mode != "index":
        needed(store)
    if paths is None and cfg.mode == "index":
        raise InputError(f"{cfg.index}: there is nothing to index; set scenes to a raster, a folder, a glob or a list.")
    if cfg.query.places is not None and store.exists and cfg.mode != "index":
        return answer_places(cfg, folder, store, Recipe.from_dict(store.about()[0]), paths)
    if cfg.mode != "index":
        check_shown(cfg)  # not only when all is indexed
    means = _prepared(cfg, store, paths)
    failed: dict[str, str] = {}
    if paths is not None:
        built = _filled(cfg, store, paths, means, workers)
        failed = built.failed
    source: ExemplarSource = instantiate(cfg.exemplars, _convert_="all")
    if cfg.mode == "index":
        return nothing_found(folder, failed)
    if cfg.query.places is not None:  # of an index that was not there before
        return answer_places(cfg, folder, store, means.setup.recipe, paths, failed)
    if not (source.given or cfg.feedback.detections or means.model.prototypes):
        if paths is None:
            raise InputError(
                f"{cfg.index}: nothing is asked of it; give exemplars (exemplars.boxes, .chips, .scenes), "
                "query.places, or mode=info."
            )
        log.warning("Nothing is asked of the index; give exemplars (exemplars.boxes, .chips, .scenes) or mode=index.")
        return nothing_found(folder, failed)
    return answer(cfg, folder, store, means, paths, failed, workers)


def _prepared(cfg: DictConfig, store: Store, paths: Sequence[str] | None) -> Means:
    """The model of this run, held against what the index was made with, or a new index."""
    about = store.about() if store.exists else None
    known = Recipe.from_dict(about[0]) if about is not None else None
    if known is not None and known.vectors == "foreign":
        raise InputError(
            f"{store.uri}: its vectors were made elsewhere, so no exemplar can be compared with them; ask by places "
            f"(query.places)."
        )
    model = trained(cfg)
    origin = f"ckpt_path={cfg.ckpt_path}"
    scenes: list[Scene] = []
    if known is None:
        bands = find_bands(cfg, model)
        scenes = _some(paths or [], bands, cfg.alpha)
        model = replace(model, bands=tuple(bands)) if model is not None else untrained(cfg, bands, scenes)
    elif model is None:
        bands = [int(b) for b in cfg.bands] if cfg.bands is not None else list(known.bands)
        model = untrained(cfg, bands, [], known_radiometry(known))
    else:
        model = replace(model, bands=tuple(find_bands(cfg, model)))
    if cfg.ckpt_path is None:
        origin = " ".join(
            f"model.{name}={'null' if cfg.model[name] is None else cfg.model[name]}"
            for name in ("backbone", "variant", "weights")
        )
    recipe = draft(model, origin, cfg.radiometry == "per_scene", float(cfg.search.min_valid), cfg.indexing, known)
    if known is not None:
        known.check(recipe, store.uri)
    engine, rule = make_engine(cfg, model), radiometry_rule(cfg.radiometry, model)
    if known is not None and about is not None:
        return Means(model, Setup(known, encoder_of(known, engine, about[1])), engine, rule)
    with store.writing():
        setup = new_index(store, recipe, engine, rule, scenes, float(cfg.indexing.shrinkage))
    return Means(model, setup, engine, rule)


def _some(paths: Sequence[str], bands: Sequence[int], alpha: Any) -> list[Scene]:  # noqa: ANN401 - as in the config
    """Up to 64 scenes, evenly from all, that can be read."""
    found: dict[str, Scene] = {}
    reason = ""
    for number in np.unique(np.linspace(0, len(paths) - 1, min(len(paths), LOOKED_AT)).astype(int)):
        try:
            found[paths[number]] = open_scene(scene_path(paths[number]), bands, alpha)
        except InputError as error:
            reason = reason or str(error)
    for path, why in unreadable(found).items():
        del found[path]
        reason = reason or why
    if not found:
        raise InputError(reason)
    return list(found.values())


def _filled(cfg: DictConfig, store: Store, paths: Sequence[str], means: Means, workers: Workers | None) -> Built:
    if not outdated(store, paths):
        log.info("0 scenes indexed, %d as they were.", len(paths))
        return Built(kept=len(paths))  # nothing to write: others may, meanwhile
    bands = list(means.setup.recipe.bands)
    with store.writing():
        built = build(
            store, paths, partial(open_scene, bands=bands, alpha=cfg.alpha), means.setup.encoder, means.radiometry,
            int(cfg.indexing.exact_below), workers,
        )  # fmt: skip
    for path, reason in built.failed.items():
        log.error("Not indexed: %s (%s)", path, reason)
    log.info(
        "%d scene(s) indexed, %d of them again, %d as they were: %d windows of %.1f Mpx in %.1f s.",
        len(built.added) + len(built.changed), len(built.changed), built.kept, built.windows, built.megapixels,
        built.seconds,
    )  # fmt: skip
    return built
