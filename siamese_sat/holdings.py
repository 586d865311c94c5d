"""What is done with an index beside asking it: look at it, take scenes out, hand it on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from siamese_sat.data.source import list_scenes
from siamese_sat.errors import InputError
from siamese_sat.outcome import SearchResult, nothing_found
from siamese_sat.progress import console
from siamese_sat.report.exchange import read_exchange, write_exchange
from siamese_sat.report.files import replacing
from siamese_sat.search.index.entry import from_json, scene_path
from siamese_sat.search.index.recipe import Recipe
from siamese_sat.search.index.schema import MAP
from siamese_sat.search.index.store import Store

log = logging.getLogger(__name__)


def show(store: Store, folder: Path) -> SearchResult:
    """Prints what is in an index, and writes it to index.json; its scenes to scenes.csv.

    Raises:
        InputError: there is no index.
    """
    scenes = needed(store).scenes()
    facts = describe(store, scenes)
    table = Table(title=store.uri, title_justify="left", title_style="bold", show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), Text(_shown(value)))
    console.print(table)
    with replacing(folder / "index.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    with replacing(folder / "scenes.csv") as temporary:
        listed = scenes[["path", "windows", "date", *MAP]]
        listed.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n", float_format="%.9f")
    return nothing_found(folder, files=[folder / "index.json", folder / "scenes.csv"])


def describe(store: Store, scenes: pd.DataFrame) -> dict[str, Any]:
    """Scenes, windows, model, area and bytes of an index, in plain values.

    Areas are of the scenes' pixels, those without a place on the map left out; where scenes overlap, the ground counts
    as often as it is covered.

    Args:
        store: an index.
        scenes: its scenes, as `Store.scenes` has them.
    """
    recipe = Recipe.from_dict(store.about()[0])
    windows, size = int(scenes.windows.sum()), store.tables.bytes()
    days = sorted(d for d in scenes.date if d is not None and not pd.isna(d))
    bounds = scenes[list(MAP)].to_numpy(float)
    placed = np.isfinite(bounds).all(axis=1)
    return {
        "scenes": len(scenes),
        "windows": windows,
        "in_inverted_index": store.indexed(),
        "vectors": f"{recipe.vectors}, {recipe.dimensions} dimensions, fp16",
        "cells": f"{recipe.cells} bytes a window" if recipe.cells else None,
        "model": recipe.model,
        "weights": recipe.weights[:16],
        "bands": list(recipe.bands),
        "window_sides": list(recipe.windows),
        "stride": recipe.stride,
        "square_kilometres": round(sum(map(ground, scenes.about)), 3),
        "west_south_east_north": [round(float(v), 5) for v in (*bounds[placed, :2].min(0), *bounds[placed, 2:].max(0))]
        if placed.any()
        else None,
        "first_day": str(days[0]) if days else None,
        "last_day": str(days[-1]) if days else None,
        "bytes": size,
        "bytes_per_window": round(size / windows, 1) if size is not None and windows else None,
    }


def ground(about: str) -> float:
    """Square kilometres that a scene covers; 0 without a place on the map."""
    scene = from_json(about)
    if not scene.georeferenced or scene.crs is None:
        return 0.0
    t = scene.transform
    pixel = abs(t.a * t.e - t.b * t.d)
    count = (scene.aoi[2] - scene.aoi[0]) * (scene.aoi[3] - scene.aoi[1])
    if scene.crs.is_geographic:
        _, latitude = t * ((scene.aoi[0] + scene.aoi[2]) / 2, (scene.aoi[1] + scene.aoi[3]) / 2)
        # A degree of the sphere that has the Earth's surface.
        return float(pixel * count * 111.195**2 * np.cos(np.radians(latitude)))
    metres = scene.crs.linear_units_factor[1]
    return float(pixel * count * metres**2 / 1e6)


def remove(store: Store, spec: Any, folder: Path) -> SearchResult:  # noqa: ANN401 - a path, or a list of them
    """Takes scenes out of an index; those that are no longer on disk are named by their paths.

    Raises:
        InputError: there is no index, or it has none of these scenes.
    """
    needed(store)
    names = [spec] if isinstance(spec, str) else list(spec)
    paths: set[str] = set()
    for name in names:
        try:
            paths.update(map(scene_path, list_scenes(name)))
        except InputError:
            paths.add(scene_path(str(name)))
    with store.writing():
        scenes = store.scenes()
        found = scenes[scenes.path.isin(paths)]
        if found.empty:
            known = f"; it knows them by their paths then, such as {scenes.path.iloc[0]}" if len(scenes) else ""
            raise InputError(f"{store.uri}: none of these scenes is in the index ({sorted(paths)[0]}){known}.")
        store.remove(found.scene.tolist())
        store.finish()
    log.info("%d scene(s) with %d windows taken out of %s.", len(found), int(found.windows.sum()), store.uri)
    return nothing_found(folder)


def exchange(store: Store, mode: str, file: str | None, folder: Path) -> SearchResult:
    """Writes an index to GeoParquet, or makes one from it.

    Raises:
        InputError: no file is named, it cannot be read or written, or the index to be made is there already.
    """
    if file is None:
        raise InputError(f"mode={mode} needs exchange=<file.parquet>.")
    if mode == "export":
        files = write_exchange(needed(store), Path(str(file)).expanduser())
        log.info("%d windows written: %s", store.count(), ", ".join(map(str, files)))
        return nothing_found(folder, files=files)
    count = read_exchange(store, Path(str(file)).expanduser())
    log.info("%d windows taken into %s.", count, store.uri)
    return nothing_found(folder)


def needed(store: Store) -> Store:
    """The store itself.

    Raises:
        InputError: there is no index.
    """
    if not store.exists:
        raise InputError(
            f"{store.uri}: there is no index here; check the path, or make one: search.py index={store.uri} mode=index "
            "scenes=<folder>."
        )
    return store


def _shown(value: Any) -> str:  # noqa: ANN401 - any plain value
    if value is None:
        return "-"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
