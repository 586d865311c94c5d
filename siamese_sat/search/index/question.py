"""What is asked of an index: a vector per class and window size, and what its similarities mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyproj import Transformer
from pyproj.exceptions import CRSError

from siamese_sat.errors import InputError
from siamese_sat.search.exemplar import Exemplar, by_class
from siamese_sat.search.index.encoder import Encoder
from siamese_sat.search.index.filters import Filter
from siamese_sat.search.index.schema import MAP
from siamese_sat.search.index.store import Probe, Store
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.patch import sides_of
from siamese_sat.search.score import ScoreCurve, fit_curve

Vector = npt.NDArray[np.float32]
# How much the mean negative counts, of the mean positive (Rocchio 1971 took a quarter to a half).
UNLIKE = 0.5
# A window's part on each side of the thing that it is asked for, of the thing's longer side, as in chips.
PADDING = 0.15
# So much of a window's side does the thing take.
FILL = 1 / (1 + 2 * PADDING)
# Of such things, the smallest and largest that a window stands for, where the next is twice as large.
SPREAD = 2**0.5
# Things of a class are sought from the smallest exemplar less this factor to the largest times it.
WIDER = 1.25
# Windows of one size from which what is ordinary can be told.
ENOUGH = 200


@dataclass(frozen=True)
class Question:
    """One class at one window size.

    Attributes:
        name: of the class.
        scale: side of the windows in pixels.
        vector: ``[D]`` of unit length.
        extent: width and height in pixels of the thing in such a window.
        curve: similarity to score.
    """

    name: str
    scale: int
    vector: Vector
    extent: tuple[float, float]
    curve: ScoreCurve


def questions(
    exemplars: Sequence[Exemplar],
    negatives: Sequence[Exemplar],
    encoder: Encoder,
    radiometry_of: RadiometryOf,
    ordinary: tuple[Vector, npt.NDArray[np.int32]],
    levels: int | None = None,
    windows: Sequence[int] | None = None,
) -> list[Question]:
    """Turns exemplars into questions.

    A class is asked for at all window sizes that things of its exemplars' sizes fill, or at some. Its vector is the
    mean over its exemplars and their views, each seen as if it filled a window, less half of the mean over the
    negatives of its name and of names that no class has.

    Args:
        exemplars: of all classes.
        negatives: what is unlike them.
        encoder: as the index was made with.
        radiometry_of: normalises a scene.
        ordinary: see `Store.ordinary`.
        levels: window sizes to ask at, at most, those nearest the exemplars' size first; None: all that they may fill.
        windows: sizes to ask at; None: all that there are.

    Raises:
        InputError: an exemplar cannot be read.
    """
    found = []
    groups = by_class(exemplars)
    for name, group in groups.items():
        sides = np.array([sides_of(e) for e in group])
        unlike = [e for e in negatives if e.class_name == name or e.class_name not in groups]
        each = _unit(np.stack([_seen(e, encoder, radiometry_of) for e in group]))
        away = np.mean([_seen(e, encoder, radiometry_of) for e in unlike], axis=0) if unlike else None
        towards, median = _less(each.mean(axis=0), away), np.median(sides, axis=0)
        for scale in window_sizes(sides.max(axis=1), windows or encoder.windows)[:levels]:
            width, height = (median * FILL * scale / median.max()).tolist()
            curve = _curve(each, away, ordinary, scale)
            found.append(Question(name, int(scale), towards, (width, height), curve))
    return found


def window_sizes(longer: npt.NDArray[np.float64], windows: Sequence[int]) -> list[int]:
    """Sides of windows that things like these fill, that nearest their median first; one at least.

    Args:
        longer: ``[n]`` longer sides of the exemplars, pixels.
        windows: that there are.
    """
    median = float(np.median(longer))
    nearest = sorted(windows, key=lambda w: abs(math.log(w * FILL / median)))
    low, high = float(longer.min()) / WIDER / SPREAD, float(longer.max()) * WIDER * SPREAD
    return [w for w in nearest if low <= w * FILL <= high] or nearest[:1]


def prototype_questions(
    prototypes: Mapping[str, Vector],
    extents: Mapping[str, tuple[float, float]],
    windows: Sequence[int],
    ordinary: tuple[Vector, npt.NDArray[np.int32]],
) -> list[Question]:
    """Questions after the classes that a training knows, for an index of its embeddings."""
    found = []
    for name, vector in prototypes.items():
        scale = window_sizes(np.array([max(extents[name])]), windows)[0]
        unit = _unit(np.asarray(vector, np.float32))
        found.append(Question(name, scale, unit, extents[name], _curve(unit[None], None, ordinary, scale)))
    return found


def place_questions(
    store: Store,
    places: Mapping[str, Sequence[Sequence[float]]],
    unlike: Sequence[Sequence[float]],
    scale: int,
    crs: str = "EPSG:4326",
) -> list[Question]:
    """Questions after what lies at places on the map, by the vectors that the index has of them: no scene is touched.

    Args:
        store: the index.
        places: x and y by class.
        unlike: x and y of what is not meant.
        scale: side of the windows that are asked.
        crs: of these coordinates.

    Raises:
        InputError: the coordinates are none, or no window lies there.
    """
    ordinary = store.ordinary()
    away = np.mean([_at(store, p, scale, crs) for p in unlike], axis=0) if len(unlike) else None
    found = []
    for name, points in places.items():
        each = np.stack([_at(store, p, scale, crs) for p in points])
        side = scale * FILL
        curve = _curve(each, away, ordinary, scale)
        found.append(Question(str(name), scale, _less(each.mean(axis=0), away), (side, side), curve))
    return found


def _at(store: Store, point: Sequence[float], scale: int, crs: str) -> Vector:
    try:
        east, north = map(float, point)
        x, y = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(east, north)
    except (CRSError, TypeError, ValueError) as error:
        raise InputError(f"query.places: {point!r} is not [x, y] in {crs}.") from error
    rows = store.at(float(x), float(y), f"scale = {scale}")
    if rows.empty:
        raise InputError(f"query.places: no window of the index ({scale} pixels) lies at {list(point)} in {crs}.")
    return _unit(np.asarray(rows.vector[0], np.float32))


def ask(
    store: Store, question: Question, chosen: Filter, count: int, least: float | None = None, probe: Probe | None = None
) -> pd.DataFrame:
    """The windows that answer a question best.

    Args:
        store: the index.
        question: what is asked.
        chosen: the part of the index that is asked.
        count: windows at most.
        least: similarity, -1..1, below which a window is no answer.
        probe: see `Store.nearest`.

    Returns:
        Rows as `Store.nearest` gives them, best first, with ``scale``, and ``score`` 0..1.
    """
    where = " AND ".join(filter(None, (f"scale = {question.scale}", chosen.where)))
    known = set(chosen.scenes.scene)
    asked = count
    while True:
        # A scale alone leaves many windows in every partition; all filters together may leave few in any.
        filtered = chosen.where is not None
        found = store.nearest(question.vector, asked, where, probe, placed=chosen.area is not None, narrow=filtered)
        if len(found) < asked and not filtered:
            found = store.nearest(question.vector, asked, where, probe, narrow=True)
        # Windows of a scene that is being indexed have no entry yet; those outside a bent area were in its box.
        good = found.scene.isin(known).to_numpy()
        if chosen.area is not None:
            good = good & chosen.inside(found[list(MAP)].to_numpy(float))
        if good.sum() >= count or len(found) < asked:
            break
        asked *= 4
    found = found[good][:count]
    if least is not None:
        found = found[found.similarity >= least]
    found = found.reset_index(drop=True)
    found["scale"] = question.scale
    found["score"] = question.curve(found.similarity.to_numpy(float))
    return found


def check_sizes(exemplars: Sequence[Exemplar], windows: Sequence[int]) -> list[str]:
    """Classes whose things are smaller or larger than those that the windows are asked for."""
    far = []
    for name, group in by_class(exemplars).items():
        longer = float(np.median([max(sides_of(e)) for e in group]))
        if not min(windows) * FILL / SPREAD / WIDER <= longer <= max(windows) * FILL * SPREAD * WIDER:
            far.append(f"{name} ({longer:.0f} pixels)")
    return far


def _seen(exemplar: Exemplar, encoder: Encoder, radiometry_of: RadiometryOf) -> Vector:
    views = encoder.exemplar(exemplar, radiometry_of(exemplar.scene), max(sides_of(exemplar)) / FILL)
    return np.asarray(_unit(views.mean(axis=0)))


def _less(towards: Vector, away: Vector | None) -> Vector:
    towards = _unit(towards)
    return towards if away is None else _unit(towards - UNLIKE * _unit(away))


def _curve(each: Vector, away: Vector | None, ordinary: tuple[Vector, npt.NDArray[np.int32]], scale: int) -> ScoreCurve:
    """Scores from how the exemplars find each other, and from how ordinary windows look to them."""
    count = len(each)
    left_out = (
        [each[i] @ _less(np.delete(each, i, axis=0).mean(axis=0), away) for i in range(count)] if count > 1 else []
    )
    vectors, scales = ordinary
    mine = vectors[scales == scale] if (scales == scale).sum() >= ENOUGH else vectors
    if not len(mine):
        raise InputError("The index is empty; give scenes to index.")
    return fit_curve(np.asarray(left_out, float), (mine @ _less(each.mean(axis=0), away)).astype(float))


def _unit(vectors: Vector) -> Vector:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)
