"""Answers out of an index: what is asked, what is looked at again, what is reported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from siamese_sat.data.scene import Scene
from siamese_sat.data.source import scene_keys
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.outcome import SearchResult, conclude
from siamese_sat.search.engine import Engine
from siamese_sat.search.index.answer import Remembered, Verified, surroundings
from siamese_sat.search.index.build import unchanged
from siamese_sat.search.index.cells import CellSearch
from siamese_sat.search.index.entry import from_json, scene_path, signature
from siamese_sat.search.index.features import FeatureEncoder
from siamese_sat.search.index.filters import Filter, make_filter
from siamese_sat.search.index.question import (
    Question,
    ask,
    check_sizes,
    place_questions,
    prototype_questions,
    questions,
)
from siamese_sat.search.index.recipe import Recipe
from siamese_sat.search.index.schema import Entry, entries_of
from siamese_sat.search.index.setup import Setup
from siamese_sat.search.index.store import Probe, Store
from siamese_sat.search.method import RadiometryOf, SearchMethod
from siamese_sat.search.run import Workers
from siamese_sat.search.template import TemplateSearch
from siamese_sat.search.unlike import Unlike
from siamese_sat.searching import make_method, unreadable
from siamese_sat.shown import read_shown

log = logging.getLogger(__name__)

# Scenes that are looked at to learn what an archive looks like.
LOOKED_AT = 64
# Scenes without an answer are reported too, up to so many.
LISTED = 1000


@dataclass(frozen=True)
class Means:
    """What makes vectors like the index's own.

    Attributes:
        model: of this run.
        setup: as the index was made with.
        engine: runs the model.
        radiometry: normalises a scene.
    """

    model: TrainedModel
    setup: Setup
    engine: Engine
    radiometry: RadiometryOf


def answer(
    cfg: DictConfig,
    folder: Path,
    store: Store,
    means: Means,
    paths: Sequence[str] | None,
    failed: Mapping[str, str],
    workers: Workers | None = None,
) -> SearchResult:
    """Asks an index for what the exemplars show.

    Args:
        cfg: as ``conf/search.yaml`` composes it.
        folder: for what is written.
        store: the index.
        means: to see the exemplars as the index saw the scenes.
        paths: these scenes only; None for all.
        failed: scenes that could not be indexed, with the reason.
        workers: that share the scenes, or None.

    Raises:
        InputError: a setting, an exemplar or all scenes cannot be used.
    """
    model, recipe, entries = means.model, means.setup.recipe, store.scenes()
    inner = make_method(cfg)
    look = _look(cfg, inner, means.setup)
    chosen = _chosen(cfg, entries, paths)
    liked, disliked = read_shown(cfg, recipe.bands, model.chip, _scene_of(cfg, entries))
    far = check_sizes(liked, recipe.windows)
    if far:
        windows = ", ".join(map(str, recipe.windows))
        log.warning("The index's windows (%s pixels) hardly see things of this size: %s.", windows, ", ".join(far))
    if liked:
        encoder, levels = means.setup.encoder, int(cfg.query.levels) if cfg.query.levels is not None else None
        sizes = _window_sizes(cfg, recipe.windows)
        asked = questions(liked, disliked, encoder, means.radiometry, store.ordinary(), levels, sizes)
    elif recipe.vectors == "embedding":
        vectors = {n: p.cpu().numpy() for n, p in model.prototypes.items()}
        asked = prototype_questions(vectors, model.extents, recipe.windows, store.ordinary())
    else:
        raise InputError("An index of features is asked by exemplars; give some (exemplars, or feedback).")
    hits = _hits(store, asked, chosen, cfg.query)
    entered, scenes, per_scene = _reported(cfg, chosen, hits)
    _warn_of_changed([e for e in entered if e.path in per_scene])
    if look is None or not liked:
        return _remembered(cfg, folder, asked, entered, scenes, per_scene, failed, model.radiometry.names)
    if look == "cells":
        assert isinstance(inner, TemplateSearch) and isinstance(means.setup.encoder, FeatureEncoder)
        scales = {name: [q.scale for q in asked if q.name == name] for name in dict.fromkeys(q.name for q in asked)}
        own: SearchMethod = CellSearch(inner, store, means.setup.encoder, per_scene, scales)
        own = Unlike(own, disliked) if disliked else own
        own.prepare(model, means.engine, liked, means.radiometry, [])
        cfg = _without_pictures_of_lost(cfg, scenes)
        return conclude(cfg, folder, own, scenes, failed, model.radiometry.names, model.thresholds)
    failed = {**failed, **_leave_lost(scenes, per_scene)}
    by_path = {scene.path: scene for scene in scenes.values()}
    if isinstance(inner, TemplateSearch):
        # Only what windows of the exemplars' own sizes answered is looked at.
        inner = replace(inner, larger_levels=0)
    margin = float(cfg.query.margin)
    places = {path: surroundings(mine, by_path[path].aoi, margin) for path, mine in per_scene.items()}
    method = Verified(Unlike(inner, disliked) if disliked else inner, places)
    method.prepare(model, means.engine, liked, means.radiometry, _background(scenes))
    cfg = _without_pictures_of_lost(cfg, scenes)
    return conclude(cfg, folder, method, scenes, failed, model.radiometry.names, model.thresholds, workers)


def _look(cfg: DictConfig, method: SearchMethod, setup: Setup) -> str | None:
    """By what answers are looked at more closely: ``cells`` of the index, ``pixels`` of the scenes, or None.

    Raises:
        InputError: ``query.verify`` asks for what is not there.
    """
    wanted = cfg.query.verify
    kept = setup.recipe.cells > 0 and isinstance(method, TemplateSearch)
    if wanted == "cells" and not kept:
        raise InputError(
            "query.verify=cells needs an index of features (indexing.vectors) and search/method=template; "
            "query.verify=pixels looks at the scenes."
        )
    if wanted is False:
        return None
    return "cells" if kept and wanted in ("auto", "cells", True) else "pixels"


def _window_sizes(cfg: DictConfig, windows: Sequence[int]) -> list[int]:
    """Sizes of windows that are asked: all, or those of ``query.scales``.

    Raises:
        InputError: there are none.
    """
    if not cfg.query.scales:
        return list(windows)
    found = [w for w in windows if w in list(cfg.query.scales)]
    if not found:
        raise InputError(
            f"query.scales={list(cfg.query.scales)}: the index has windows of {', '.join(map(str, windows))} pixels."
        )
    return found


def answer_places(
    cfg: DictConfig,
    folder: Path,
    store: Store,
    recipe: Recipe,
    paths: Sequence[str] | None,
    failed: Mapping[str, str] | None = None,
) -> SearchResult:
    """Asks an index for what lies at places on the map (``query.places``), by the vectors that it has of them.

    Args:
        cfg: as ``conf/search.yaml`` composes it.
        folder: for what is written.
        store: the index; its vectors may have been made elsewhere.
        recipe: what it was made with.
        paths: these scenes only; None for all.
        failed: scenes that could not be indexed, with the reason.

    Raises:
        InputError: see `place_questions`.
    """
    query, chosen = cfg.query, _chosen(cfg, store.scenes(), paths)
    places, unlike = _bare(query.places), _bare(query.unlike) or []
    if not isinstance(places, dict) or not all(places.values()):
        raise InputError(f"query.places={places!r} must be {{class: [[x, y], ...]}}.")
    scale = int(query.scales[0]) if query.scales else min(recipe.windows)
    asked = place_questions(store, places, unlike, scale, query.area_crs)
    entered, scenes, per_scene = _reported(cfg, chosen, _hits(store, asked, chosen, query))
    names = recipe.radiometry.get("names", ["PAN"])
    return _remembered(cfg, folder, asked, entered, scenes, per_scene, failed or {}, names)


def _remembered(
    cfg: DictConfig,
    folder: Path,
    asked: Sequence[Question],
    entered: Sequence[Entry],
    scenes: Mapping[str, Scene],
    per_scene: Mapping[str, pd.DataFrame],
    failed: Mapping[str, str],
    bands: Sequence[str],
) -> SearchResult:
    counts = {e.path: e.windows for e in entered}
    method = Remembered(list(dict.fromkeys(q.name for q in asked)), per_scene, counts)
    return conclude(_without_pictures_of_lost(cfg, scenes), folder, method, scenes, failed, bands)


def _chosen(cfg: DictConfig, entries: pd.DataFrame, paths: Sequence[str] | None) -> Filter:
    query = cfg.query
    return make_filter(
        entries,
        paths=[scene_path(p) for p in paths] if paths is not None else None,
        area=_bare(query.area),
        area_crs=query.area_crs,
        scene_glob=_bare(query.scenes),
        dates=_bare(query.dates),
        scales=_bare(query.scales),
    )


def _reported(
    cfg: DictConfig, chosen: Filter, hits: pd.DataFrame
) -> tuple[list[Entry], dict[str, Scene], dict[str, pd.DataFrame]]:
    """Entries of the scenes that are reported, the scenes by name, and the answers by path."""
    every = {e.scene: e for e in entries_of(chosen.scenes)}
    everything = cfg.truth is not None or len(every) <= LISTED
    entered = list(every.values()) if everything else [every[n] for n in hits.scene.unique().tolist()]
    by_path = {e.path: from_json(e.about) for e in entered}
    scenes = {name: by_path[path] for name, path in scene_keys(list(by_path)).items()}
    return entered, scenes, {every[int(str(n))].path: mine for n, mine in hits.groupby("scene")}


def _warn_of_changed(entered: Sequence[Entry]) -> None:
    # One that is gone has nothing that could be another.
    changed = [e.path for e in entered if not unchanged(e) and Path(e.path).exists()]
    if changed:
        log.warning(
            "%d scene(s) have changed since they were indexed (%s): index them again.", len(changed), changed[0]
        )


def _scene_of(cfg: DictConfig, entries: pd.DataFrame) -> Callable[[str], Scene]:
    """Finds scenes by the names that detections carry: the file's where it is the only one so called, or the path."""
    abouts = dict(zip(entries.path, entries.about, strict=True))
    paths = {**{path: path for path in abouts}, **scene_keys(list(abouts))}

    def find(name: str) -> Scene:
        if name not in paths:
            raise InputError(f"{cfg.feedback.detections}: {name} is not in the index {cfg.index}.")
        scene = from_json(str(abouts[paths[name]]))
        if "://" not in scene.path and not Path(scene.path).exists():
            raise InputError(
                f"{cfg.feedback.detections}: {scene.path} is gone, and an exemplar is seen on its pixels; query.places "
                f"asks by the vectors that the index has of a place."
            )
        return scene

    return find


def _hits(store: Store, asked: Sequence[Question], chosen: Filter, query: DictConfig) -> pd.DataFrame:
    partitions = int(query.partitions) if query.partitions is not None else None
    probe = Probe(partitions, int(query.refine), bool(query.exact))
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
    gone += [s.path for s in scenes.values() if s.path.endswith(".parquet")]  # a table of embeddings made elsewhere
    if not gone:
        return cfg
    log.warning("%d scene(s) are not where they were (%s): no pictures of scenes.", len(gone), gone[0])
    cfg = cfg.copy()
    OmegaConf.update(cfg, "output.overlays", 0)
    OmegaConf.update(cfg, "output.verdicts", 0)
    return cfg


def _bare(value: Any) -> Any:  # noqa: ANN401 - a setting
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
