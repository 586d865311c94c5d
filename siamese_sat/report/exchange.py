"""An index as GeoParquet, the form in which others publish embeddings: ``id, geometry, embedding``, and what made them.

Earth Index publishes its embeddings so. All else that an index knows of a window stands in further columns, and what
its vectors are made with in a JSON file beside the table: what was exported can be asked after import as before.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from affine import Affine
from rasterio.crs import CRS

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.report.files import replacing
from siamese_sat.search.index.entry import from_json, to_json
from siamese_sat.search.index.filters import DEGREES
from siamese_sat.search.index.schema import (
    MAP,
    PLACE,
    cells_of,
    entries_of,
    fixed_binary,
    scene_schema,
    vectors_of,
    window_schema,
)
from siamese_sat.search.index.store import Store

SUFFIX = ".json"
# Degrees a "pixel" of tables that know no scenes: a centimetre on the ground, so that boxes come back where they were.
FINE = 1e-7


def write_exchange(store: Store, path: Path) -> list[Path]:
    """Writes all windows of an index.

    Args:
        store: the index.
        path: GeoParquet in EPSG:4326; the JSON is written beside it first.

    Returns:
        Both files.

    Raises:
        InputError: one cannot be written.
    """
    if path.suffix != ".parquet":
        raise InputError(f"{path}: exchange must end in .parquet.")
    about, tensors = store.about()
    entries = store.scenes()
    scenes = {e.scene: from_json(e.about) for e in entries_of(entries)}
    paths = dict(zip(entries.scene, entries.path, strict=True))
    beside = path.with_suffix(path.suffix + SUFFIX)
    listed = json.loads(entries.to_json(orient="records", date_format="iso"))
    with replacing(beside) as temporary:
        content = {"about": about, "tensors": base64.b64encode(tensors).decode(), "scenes": listed}
        temporary.write_text(json.dumps(content), encoding="utf-8")
    with replacing(path) as temporary:
        writer: pq.ParquetWriter | None = None
        try:
            first, wide = 0, int(about.get("cells", 0))
            columns = [*PLACE, "vector", *(["cells"] if wide else [])]
            for batch in itertools.chain(store.batches(columns), [None]):
                if batch is None and writer is not None:
                    break
                table = pa.Table.from_batches([batch]) if batch is not None else window_schema(1, wide).empty_table()
                part = _outgoing(table, scenes, paths, first)
                first += len(part)
                writer = writer or pq.ParquetWriter(temporary, part.schema, compression="zstd")
                writer.write_table(part)
        finally:
            if writer is not None:
                writer.close()
    return [path, beside]


def _outgoing(table: pa.Table, scenes: Mapping[int, Scene], paths: Mapping[int, str], first: int) -> pa.Table:
    frame = table.select(list(PLACE)).to_pandas()
    known = frame.scene.isin(list(scenes)).to_numpy()  # others are of a scene that is being indexed
    frame, vectors = frame[known].reset_index(drop=True), vectors_of(table)[known]
    corners = frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
    shapes: npt.NDArray[np.object_] = np.full(len(frame), None, dtype=object)
    for number, rows in frame.groupby("scene").indices.items():
        shapes[rows] = _on_map(scenes[int(str(number))], corners[rows])
    frame.insert(0, "id", [f"{first + i}" for i in range(len(frame))])
    frame["path"] = [paths[s] for s in frame.scene]
    found = gpd.GeoDataFrame(frame.drop(columns=[*MAP]), geometry=shapes, crs=DEGREES)
    arrow = pa.table(found.to_arrow(index=False, geometry_encoding="WKB"))
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {
        "encoding": "WKB", "geometry_types": ["Polygon"], "crs": found.crs.to_json_dict()}}}  # fmt: skip
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
    arrow = arrow.append_column("embedding", embedding)
    if "cells" in table.column_names:
        arrow = arrow.append_column("cells", fixed_binary(cells_of(table)[known]))
    return arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"geo": json.dumps(geo).encode()})


def _on_map(scene: Scene, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    if not scene.georeferenced or scene.crs is None:
        return np.full(len(boxes), None, dtype=object)
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    t = scene.transform
    rings = np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=-1)
    return np.asarray(gpd.GeoSeries(shapely.polygons(rings), crs=scene.crs.to_wkt()).to_crs(DEGREES).to_numpy())


def read_exchange(store: Store, path: Path) -> int:
    """Makes an index from GeoParquet.

    Args:
        store: where; nothing may be there yet.
        path: with a column ``embedding`` (lists of equal length) and polygons or points; what `write_exchange` put
            beside it makes it the index that it was, else it is one scene whose vectors were made elsewhere.

    Returns:
        How many windows it has.

    Raises:
        InputError: the file is missing or has no such columns, or there is an index already.
    """
    if store.exists:
        raise InputError(f"{store.uri}: there is an index already; import into another place.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; exchange names a GeoParquet file with id, geometry, embedding.")
    try:
        file = pq.ParquetFile(path)
        names = set(file.schema_arrow.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}).") from error
    if not {"embedding", "geometry"} <= names:
        raise InputError(f"{path}: has no columns embedding and geometry; it has {', '.join(sorted(names))}.")
    beside = path.with_suffix(path.suffix + SUFFIX)
    with store.writing():
        if beside.is_file() and {"scene", "x_min", "scale"} <= names:
            return _own(store, file, beside)
        return _foreign(store, path)


def _own(store: Store, file: pq.ParquetFile, beside: Path) -> int:
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        about, tensors = content["about"], base64.b64decode(content["tensors"])
        entries = pd.DataFrame(content["scenes"], columns=scene_schema().names)
    except (KeyError, ValueError) as error:
        raise InputError(f"{beside} is not what an export wrote beside its table; export again.") from error
    wide = int(about.get("cells", 0))
    if wide and "cells" not in file.schema_arrow.names:
        raise InputError(f"{beside} speaks of cells that its table lacks; export again.")
    store.create(about, tensors, int(about["dimensions"]), wide)
    scenes = {e.scene: from_json(e.about) for e in entries_of(entries)}
    count = 0
    for batch in file.iter_batches(50_000):
        rows = _incoming(pa.Table.from_batches([batch]), scenes)
        store.add_windows(rows)
        count += len(rows)
    entries["date"] = [pd.Timestamp(d).date() if d is not None and not pd.isna(d) else None for d in entries.date]
    store.enter_scenes(pa.Table.from_pandas(entries, schema=scene_schema(), preserve_index=False))
    store.finish()
    return count


def _incoming(table: pa.Table, scenes: Mapping[int, Scene]) -> pa.Table:
    from siamese_sat.search.index.entry import degrees

    frame = table.select([c for c in PLACE if c in table.column_names]).to_pandas()
    boxes = frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
    bounds = np.full((len(frame), 4), np.nan)
    for number, rows in frame.groupby("scene").indices.items():
        bounds[rows] = degrees(scenes[int(str(number))], boxes[rows])
    frame[list(MAP)] = bounds
    vectors = np.stack(table["embedding"].to_pylist()).astype(np.float16)
    return _rows(frame, vectors, cells_of(table) if "cells" in table.column_names else None)


def _rows(frame: pd.DataFrame, vectors: npt.NDArray[Any], cells: npt.NDArray[np.uint8] | None = None) -> pa.Table:
    schema = window_schema(vectors.shape[1], cells.shape[1] if cells is not None else 0)
    columns = [pa.array(frame[n], schema.field(n).type, from_pandas=True) for n in PLACE]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    kept = [fixed_binary(cells)] if cells is not None else []
    return pa.Table.from_arrays([*columns, flat, *kept], schema=schema)


def _foreign(store: Store, path: Path) -> int:
    try:
        frame = gpd.read_parquet(path)
        vectors = np.stack([np.asarray(v, np.float32) for v in frame.embedding])
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not GeoParquet with embeddings of one length ({error}).") from error
    if frame.crs is None or not len(frame):
        raise InputError(f"{path}: is empty, or does not say in which coordinate reference system its geometry is.")
    bounds = frame.geometry.to_crs(DEGREES).bounds.to_numpy(float)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    west, south = map(float, bounds[:, :2].min(0))
    east, north = map(float, bounds[:, 2:].max(0))
    width, height = int(np.ceil((east - west) / FINE)) + 1, int(np.ceil((north - south) / FINE)) + 1
    scene = Scene(
        str(path.resolve()), width, height, (1,), "float32", CRS.from_epsg(4326),
        Affine(FINE, 0, west, 0, -FINE, north), None, None, False, None, (0, 0, width, height),
    )  # fmt: skip
    boxes = np.stack(
        [bounds[:, 0] - west, north - bounds[:, 3], bounds[:, 2] - west, north - bounds[:, 1]], axis=1
    ) / FINE  # fmt: skip
    side = max(1, round(float(np.median(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])))))
    rows = pd.DataFrame(boxes, columns=["x_min", "y_min", "x_max", "y_max"])
    rows["scene"], rows["scale"], rows["valid"], rows["date"] = 1, side, 1.0, None
    rows[list(MAP)] = bounds
    dimensions = vectors.shape[1]
    about = {
        "vectors": "foreign", "weights": "", "model": str(path), "spec": {}, "bands": [1], "radiometry": {},
        "per_scene": False, "chip": side, "windows": [side], "stride": side, "stage": "", "dimensions": dimensions,
        "min_valid": 0.0,
    }  # fmt: skip
    store.create(about, b"", dimensions)
    store.add_windows(_rows(rows, vectors))
    entry = {
        "scene": 1, "path": scene.path, "size": 0, "modified": 0, "header": "", "windows": len(rows), "date": None,
        "about": to_json(scene), **dict(zip(MAP, (west, south, east, north), strict=True)),
    }  # fmt: skip
    store.enter_scenes(pa.Table.from_pylist([entry], schema=scene_schema()))
    store.finish()
    return len(rows)
