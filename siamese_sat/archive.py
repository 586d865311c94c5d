"""A search by an index: a config in; scenes into the index, and answers out of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from siamese_sat.data.scene import Scene, open_scene
from siamese_sat.data.source import list_scenes, scene_keys
from siamese_sat.errors import InputError
from siamese_sat.holdings import exchange, remove, show
from siamese_sat.model.checkpoint import TrainedModel, load_model
from siamese_sat.outcome import SearchResult, conclude, nothing_found
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import ExemplarSource
from siamese_sat.search.index.answer import Remembered, Verified, surroundings
from siamese_sat.search.index.build import Built, build, outdated
from siamese_sat.search.index.entry import from_json, scene_path, signature
from siamese_sat.search.index.filters import Filter, make_filter
from siamese_sat.search.index.question import Question, ask, check_sizes, prototype_questions, questions
from siamese_sat.search.index.recipe import Recipe
from siamese_sat.search.index.schema import entries_of
from siamese_sat.search.index.setup import Setup, draft, encoder_of, known_radiometry, new_index
from siamese_sat.search.index.store import Probe, Store
from siamese_sat.search.method import RadiometryOf, SearchMethod
from siamese_sat.search.unlike import Unlike
from siamese_sat.searching import find_bands, make_engine, plain, radiometry_rule, unreadable, untrained
from siamese_sat.shown import read_shown

log = logging.getLogger(__name__)

# Scenes that are looked at to learn what an archive looks like, where nothing is known of it.
LOOKED_AT = 64
# Scenes without an answer are reported too, up to so many.
LISTED = 1000


def ask_archive(cfg: DictConfig, folder: Path) -> SearchResult:
    """Does what ``mode`` says with the index at ``index``.

    Args:
        cfg: as ``conf/search.yaml`` composes it.
        folder: for what is written.

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
    if paths is None and (cfg.mode == "index" or not store.exists):
        raise InputError(f"{cfg.index}: there is nothing to index; set scenes to a raster, a folder, a glob or a list.")
    model, setup, engine = _prepared(cfg, store, paths)
    radiometry = radiometry_rule(cfg.radiometry, model)
    failed: dict[str, str] = {}
    if paths is not None:
        built = _filled(cfg, store, paths, setup, radiometry)
        failed = built.failed
    source: ExemplarSource = instantiate(cfg.exemplars, _convert_="all")
    if cfg.mode == "index" or not (source.given or cfg.feedback.detections or model.prototypes):
        return nothing_found(folder, failed)
    return _answered(cfg, folder, store, model, setup, engine, radiometry, paths, failed)


def _prepared(cfg: DictConfig, store: Store, paths: Sequence[str] | None) -> tuple[TrainedModel, Setup, Engine]:
    """The model of this run, held against what the index was made with, or a new index."""
    about = store.about() if store.exists else None
    known = Recipe.from_dict(about[0]) if about is not None else None
    if known is not None and known.vectors == "foreign":
        raise InputError(f"{store.uri}: its vectors were made elsewhere; this product cannot make further ones.")
    model = load_model(cfg.ckpt_path) if cfg.ckpt_path is not None else None
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
        origin = f"model.backbone={cfg.model.backbone} model.weights={cfg.model.weights}"
    recipe = draft(model, origin, cfg.radiometry == "per_scene", float(cfg.search.min_valid), cfg.indexing, known)
    if known is not None:
        known.check(recipe, store.uri)
    engine = make_engine(cfg, model)
    if known is not None and about is not None:
        return model, Setup(known, encoder_of(known, engine, about[1])), engine
    with store.writing():
        rule = radiometry_rule(cfg.radiometry, model)
        return model, new_index(store, recipe, engine, rule, scenes, float(cfg.indexing.shrinkage)), engine


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


def _filled(cfg: DictConfig, store: Store, paths: Sequence[str], setup: Setup, radiometry: RadiometryOf) -> Built:
    if not outdated(store, paths):
        return Built(kept=len(paths))  # nothing to write: others may, meanwhile
    bands = list(setup.recipe.bands)
    with store.writing():
        built = build(
            store, paths, lambda path: open_scene(path, bands, cfg.alpha), setup.encoder, radiometry,
            int(cfg.indexing.exact_below),
        )  # fmt: skip
    for path, reason in built.failed.items():
        log.error("Not indexed: %s (%s)", path, reason)
    log.info(
        "%d scene(s) indexed, %d of them again, %d as they were: %d windows of %.1f Mpx in %.1f s.",
        len(built.added) + len(built.changed), len(built.changed), built.kept, built.windows, built.megapixels,
        built.seconds,
    )  # fmt: skip
    return built


def _answered(
    cfg: DictConfig,
    folder: Path,
    store: Store,
    model: TrainedModel,
    setup: Setup,
    engine: Engine,
    radiometry: RadiometryOf,
    paths: Sequence[str] | None,
    failed: Mapping[str, str],
) -> SearchResult:
    query = cfg.query
    entries = store.scenes()
    chosen = make_filter(
        entries,
        paths=[scene_path(p) for p in paths] if paths is not None else None,
        area=_bare(query.area),
        area_crs=query.area_crs,
        scene_glob=_bare(query.scenes),
        dates=_bare(query.dates),
        scales=_bare(query.scales),
    )
    liked, disliked = read_shown(cfg, setup.recipe.bands, model.chip, _scene_of(cfg, entries))
    far = check_sizes(liked, setup.recipe.windows)
    if far:
        log.warning("The index's windows (%s pixels) hardly see things of this size: %s.",
                    ", ".join(map(str, setup.recipe.windows)), ", ".join(far))  # fmt: skip
    if liked:
        asked = questions(liked, disliked, setup.encoder, radiometry, store.ordinary(), int(query.levels))
    elif setup.recipe.vectors == "embedding":
        vectors = {n: p.cpu().numpy() for n, p in model.prototypes.items()}
        asked = prototype_questions(vectors, model.extents, setup.recipe.windows, store.ordinary())
    else:
        raise InputError("An index of features is asked by exemplars; give some (exemplars, or feedback).")
    hits = _hits(store, asked, chosen, query)
    every = {e.scene: e for e in entries_of(chosen.scenes)}
    everything = cfg.truth is not None or len(every) <= LISTED
    wanted = every if everything else {n: every[n] for n in hits.scene.unique().tolist()}
    by_path = {e.path: from_json(e.about) for e in wanted.values()}
    scenes = {name: by_path[path] for name, path in scene_keys(list(by_path)).items()}
    per_scene = {wanted[int(str(n))].path: mine for n, mine in hits.groupby("scene")}
    classes = list(dict.fromkeys(q.name for q in asked))
    method: SearchMethod
    if query.verify and liked:
        failed = {**failed, **_leave_lost(scenes, per_scene)}
        places = {p: surroundings(mine, by_path[p].aoi) for p, mine in per_scene.items()}
        inner: SearchMethod = instantiate(cfg.search.method, _convert_="all")
        method = Verified(Unlike(inner, disliked) if disliked else inner, places)
        method.prepare(model, engine, liked, radiometry, _background(scenes))
    else:
        counts = {e.path: e.windows for e in wanted.values()}
        method = Remembered(classes, per_scene, counts)
        cfg = _without_pictures_of_lost(cfg, scenes)
    return conclude(cfg, folder, model, method, scenes, failed)


def _scene_of(cfg: DictConfig, entries: pd.DataFrame) -> Callable[[str], Scene]:
    """Finds scenes by the names that detections carry: the file's where it is the only one so called, or the path."""
    abouts = dict(zip(entries.path, entries.about, strict=True))
    paths = {**{path: path for path in abouts}, **scene_keys(list(abouts))}

    def find(name: str) -> Scene:
        if name not in paths:
            raise InputError(f"{cfg.feedback.detections}: {name} is not in the index {cfg.index}.")
        return from_json(str(abouts[paths[name]]))

    return find


def _hits(store: Store, asked: Sequence[Question], chosen: Filter, query: DictConfig) -> pd.DataFrame:
    probe = Probe(int(query.partitions), int(query.refine), bool(query.exact))
    classes = list(dict.fromkeys(q.name for q in asked))
    parts = []
    for question in asked:
        least = float(query.least) if query.least is not None else None
        mine = ask(store, question, chosen, int(query.candidates), least, probe)
        mine["class"] = classes.index(question.name)
        mine["width"], mine["height"] = question.extent
        parts.append(mine)
    found = pd.concat(parts, ignore_index=True).sort_values("score", ascending=False, kind="stable", ignore_index=True)
    return found[found.groupby("class").cumcount() < int(query.candidates)].reset_index(drop=True)


def _leave_lost(scenes: dict[str, Scene], hits: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Takes out scenes with answers that cannot be looked at any more; returns the reasons."""
    names = {scene.path: name for name, scene in scenes.items()}
    failed = {}
    for name, reason in unreadable({names[p]: scenes[names[p]] for p in hits}).items():
        path = scenes.pop(name).path
        failed[path] = reason
        del hits[path]
    if failed and not scenes:
        raise InputError(next(iter(failed.values())))
    return failed


def _background(scenes: Mapping[str, Scene]) -> list[Scene]:
    """Scenes from which the method learns what is ordinary: all, or some that can be read."""
    every = list(scenes.values())
    chosen = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(len(every), LOOKED_AT)).astype(int))]
    lost = set(unreadable({s.path: s for s in chosen}))
    return [s for s in chosen if s.path not in lost]


def _without_pictures_of_lost(cfg: DictConfig, scenes: Mapping[str, Scene]) -> DictConfig:
    """The index answers for scenes that are gone; their pictures it cannot draw."""
    gone = [s.path for s in scenes.values() if "://" not in s.path and signature(s.path).size == 0]
    if not gone:
        return cfg
    log.warning("%d scene(s) are not where they were (%s): no pictures of scenes.", len(gone), gone[0])
    cfg = cfg.copy()
    OmegaConf.update(cfg, "output.overlays", 0)
    OmegaConf.update(cfg, "output.verdicts", 0)
    return cfg


def _bare(value: Any) -> Any:  # noqa: ANN401 - a setting
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
