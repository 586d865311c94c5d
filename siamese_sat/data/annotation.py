"""Labelled boxes, from whichever of three kinds of file holds them.

``challenge``: ``<scene>.json`` beside the scene, a FeatureCollection with the property "Class Name" and polygons in
PIXEL coordinates. ``vector``: GeoJSON, GeoPackage or Shapefile in MAP coordinates. ``coco``: COCO JSON.
The kind is read off the file itself.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError

log = logging.getLogger(__name__)

CLASS_FIELDS = ("Class Name", "class_name", "class", "label", "category", "name", "type")
SIDECARS = (".json", ".geojson", ".gpkg", ".shp")
VECTOR_SUFFIXES = {".geojson", ".gpkg", ".shp", ".fgb", ".parquet"}
LABEL_COLUMNS = ["x_min", "y_min", "x_max", "y_max", "class_name", "scene"]


@dataclass
class LabelReader:
    """Reads the labels of a set of scenes.

    Attributes:
        aliases: class name as written -> class name to use ("Play Ground" -> "Playground").
        class_field: the attribute that holds the class in vector files; None looks for the usual names.
        default_class: class of features that carry no class attribute; None makes their absence an error.
        dropped: how many labels were left out, by reason, since this reader was made.
        reaching: of the last reading, the parts inside the area of interest of labels whose centre lies outside.
        setting: that named the labels, for the texts of errors.
        group: of settings, in which the user finds class_field and default_class; for these texts too.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    class_field: str | None = None
    default_class: str | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    reaching: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=LABEL_COLUMNS))
    setting: str = "data.labels"
    group: str = "data"

    def read(self, scenes: Sequence[Scene], labels: str | Path | Sequence[str | Path] | None) -> pd.DataFrame:
        """Boxes of all scenes in pixels.

        Args:
            scenes: where the labels lie.
            labels: label files, or a folder of files named like the scenes; None looks beside each scene for
                ``<scene>.json``, ``.geojson``, ``.gpkg`` and ``.shp``.

        Returns:
            A frame with x_min, y_min, x_max, y_max (pixels of the scene, half-open), class_name and scene (path).
            Labels outside their scene's area of interest or of zero area are left out and counted in one warning.

        Raises:
            InputError: a file is missing, damaged, or of no known kind.
        """
        assigned = assign_labels(scenes, labels, self.setting)
        rows: list[pd.DataFrame] = [self._read_file(path, targets) for path, targets in assigned.items()]
        labelled = {scene.path for targets in assigned.values() for scene in targets}
        bare = [scene.name for scene in scenes if scene.path not in labelled]
        if bare and labelled:
            log.warning(
                "%d of %d scenes have no label file (%s): taken to hold nothing that is labelled.",
                len(bare), len(scenes), ", ".join(bare[:3]) + (", ..." if len(bare) > 3 else ""),
            )  # fmt: skip
        frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=LABEL_COLUMNS)
        frame = self._clean(frame, {s.path: s for s in scenes})
        self.dropped = +self.dropped
        if self.dropped:
            counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped.items()))
            log.warning("Labels left out: %s.", counts)
        return frame

    def _clean(self, frame: pd.DataFrame, scenes: Mapping[str, Scene]) -> pd.DataFrame:
        if frame.empty:
            return frame
        frame["class_name"] = frame["class_name"].astype(str).replace(dict(self.aliases))
        boxes = frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
        flat = ~((boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0)
        aoi = np.array([scenes[s].aoi for s in frame["scene"]], dtype=float)
        centre = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], axis=1)
        outside = ~((centre >= aoi[:, :2]) & (centre < aoi[:, 2:])).all(axis=1) & ~flat
        self.dropped["of zero area"] += int(flat.sum())
        self.dropped["outside their scene"] += int(outside.sum())
        # What remains is cut to the scene, as a label may reach over its border.
        boxes = np.concatenate([np.maximum(boxes[:, :2], aoi[:, :2]), np.minimum(boxes[:, 2:], aoi[:, 2:])], 1)
        frame[["x_min", "y_min", "x_max", "y_max"]] = boxes
        reaches = outside & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0)
        self.reaching = frame[reaches].reset_index(drop=True)
        kept: pd.DataFrame = frame[~flat & ~outside].reset_index(drop=True)
        return kept

    def _read_file(self, path: Path, scenes: Sequence[Scene]) -> pd.DataFrame:
        if path.suffix.lower() != ".json":
            return self._read_vector(path, scenes)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not readable JSON ({error}); repair or remove it.") from error
        try:
            if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
                return self._read_coco(path, content, scenes)
            if isinstance(content, dict) and content.get("type") == "FeatureCollection":
                if _in_pixels(content, scenes):
                    return self._read_challenge(path, content, scenes)
                return self._read_vector(path, scenes)
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error!r} stands where it should not or is missing.") from error
        raise InputError(
            f"{path} is neither COCO (images, annotations, categories) nor a FeatureCollection; give labels in "
            f"one of these forms."
        )

    def _read_challenge(self, path: Path, content: dict[str, Any], scenes: Sequence[Scene]) -> pd.DataFrame:
        rows: list[tuple[float, float, float, float, str, str]] = []
        for feature in content["features"]:
            points = _points((feature.get("geometry") or {}).get("coordinates") or [])
            name = self._class_of(path, feature.get("properties") or {})
            if not points.size:
                self.dropped["without a geometry"] += 1
                continue
            low, high = points.min(axis=0), points.max(axis=0)
            rows.extend((*low.tolist(), *high.tolist(), name, scene.path) for scene in scenes)
        return pd.DataFrame(rows, columns=LABEL_COLUMNS)

    def _read_coco(self, path: Path, content: dict[str, Any], scenes: Sequence[Scene]) -> pd.DataFrame:
        by_path = {str(Path(s.path).resolve()): s.path for s in scenes if "://" not in s.path}
        by_name = {s.name: s.path for s in scenes}
        names = {c["id"]: c["name"] for c in content["categories"]}
        target: dict[Any, str] = {}
        for image in content["images"]:
            for folder in _image_folders(path):
                key = str((folder / image["file_name"]).resolve())
                if key in by_path:
                    target[image["id"]] = by_path[key]
                    break
            else:
                name = image["file_name"].rsplit("/", 1)[-1]
                if name in by_name:
                    target[image["id"]] = by_name[name]
        rows: list[tuple[float, float, float, float, str, str]] = []
        for note in content["annotations"]:
            if note["image_id"] not in target:
                self.dropped["of scenes that are not given"] += 1
            elif not note.get("iscrowd"):
                x, y, w, h = map(float, note["bbox"])
                rows.append((x, y, x + w, y + h, names[note["category_id"]], target[note["image_id"]]))
        return pd.DataFrame(rows, columns=LABEL_COLUMNS)

    def _read_vector(self, path: Path, scenes: Sequence[Scene]) -> pd.DataFrame:
        import geopandas as gpd

        try:
            frame = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)
        except Exception as error:  # whatever GDAL, pyogrio or pyarrow make of a damaged file
            raise InputError(f"{path} cannot be read as vector labels ({error}); check the file.") from error
        if frame.crs is not None and frame.crs.is_geographic and len(frame):
            west, south, east, north = frame.total_bounds
            if min(west, east) < -360 or max(west, east) > 360 or south < -90 or north > 90:
                raise InputError(
                    f"{path} names no coordinate reference system and its numbers are no longitude and latitude "
                    f"(x to {max(abs(west), abs(east)):.0f}); write it with its CRS, as GeoPackage for example."
                )
        frame = frame[~(frame.geometry.is_empty | frame.geometry.isna())]
        records = frame.drop(columns=frame.geometry.name).to_dict("records")
        names = [self._class_of(path, record) for record in records]
        rows: list[pd.DataFrame] = []
        somewhere = np.zeros(len(frame), dtype=bool)
        for scene in scenes:
            if not scene.georeferenced or frame.crs is None:
                raise InputError(
                    f"{path} is in map coordinates, but {scene.path if frame.crs else path} has no coordinate "
                    f"reference system; give labels in pixels (COCO) or georeference it."
                )
            geometry = frame.geometry.to_crs(scene.crs)
            # The pixel box is that of the transformed outline, not of its map box: transforms may rotate.
            a = ~scene.transform
            bounds = geometry.affine_transform([a.a, a.b, a.d, a.e, a.c, a.f]).bounds.to_numpy()
            table = pd.DataFrame(bounds, columns=LABEL_COLUMNS[:4])
            table["class_name"], table["scene"] = names, scene.path
            x0, y0, x1, y1 = 0, 0, scene.width, scene.height
            touches = (table.x_max > x0) & (table.x_min < x1) & (table.y_max > y0) & (table.y_min < y1)
            somewhere |= touches.to_numpy()
            rows.append(table[touches])
        self.dropped["outside their scene"] += int((~somewhere).sum())
        return pd.concat(rows, ignore_index=True)

    def _class_of(self, path: Path, properties: Mapping[str, Any]) -> str:
        fields = (self.class_field,) if self.class_field else CLASS_FIELDS
        for key in fields:
            value = properties.get(key)
            if isinstance(value, str | int) and str(value).strip():
                return str(value).strip()
        if self.default_class:
            return self.default_class
        raise InputError(
            f"{path}: a feature has no class (looked for {', '.join(fields)}; it has "
            f"{', '.join(map(str, properties)) or 'no attribute'}); set {self.group}.class_field, or "
            f"{self.group}.default_class=<name>."
        )


def coco_scenes(labels: str | Path) -> list[str]:
    """The image paths that a COCO file names, in its order.

    Raises:
        InputError: it is not a COCO file, or an image is not found beside it or in ``images/`` beside it.
    """
    path = Path(labels)
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} names no images (not COCO); name the rasters too (data.scenes, exemplars.scenes)."
        ) from error
    found: list[str] = []
    for image in images:
        places = [folder / image["file_name"] for folder in _image_folders(path)]
        place = next((p for p in places if p.is_file()), None)
        if place is None:
            raise InputError(f"{path} names {image['file_name']}, which is not at {places[0]} or {places[1]}.")
        found.append(str(place))
    return found


def _image_folders(path: Path) -> list[Path]:
    return [path.parent, path.parent / "images", path.parent.parent / "images"]


def assign_labels(
    scenes: Sequence[Scene], labels: str | Path | Sequence[str | Path] | None, setting: str
) -> dict[Path, list[Scene]]:
    """Which label file speaks of which scenes; raises InputError where ``labels``, set by ``setting``, are missing."""
    assigned: dict[Path, list[Scene]] = {}
    if labels is None:
        for scene in scenes:
            for suffix in SIDECARS:
                path = Path(scene.path).with_suffix(suffix)
                if path.is_file():
                    _take(assigned, path, scene)
                    break
        return assigned
    for one in [labels] if isinstance(labels, str | Path) else labels:
        path = Path(one).expanduser()
        if path.is_dir():
            for scene in scenes:
                stem = Path(scene.name).stem
                for file in (path / f"{stem}{suffix}" for suffix in SIDECARS):
                    if file.is_file():
                        _take(assigned, file, scene)
                        break
        elif path.is_file():
            same = [s for s in scenes if Path(s.name).stem == path.stem]
            assigned[path] = same or list(scenes)
        else:
            raise InputError(f"{one}: no such label file or folder; check {setting}.")
    return assigned


def _take(assigned: dict[Path, list[Scene]], file: Path, scene: Scene) -> None:
    if file in assigned:
        raise InputError(
            f"{file} would belong to both {assigned[file][0].path} and {scene.path}; give scenes different names, or "
            f"labels that name their scenes (COCO)."
        )
    assigned[file] = [scene]


def _points(coordinates: Any) -> np.ndarray:  # noqa: ANN401 - GeoJSON nests to any depth
    """All positions ``[n, 2]`` of a GeoJSON coordinate tree."""
    found: list[list[float]] = []
    stack = [coordinates]
    while stack:
        node = stack.pop()
        if isinstance(node, list) and len(node) >= 2 and all(isinstance(v, int | float) for v in node[:2]):
            found.append([float(node[0]), float(node[1])])
        elif isinstance(node, list):
            stack.extend(node)
    return np.array(found, dtype=float)


def _in_pixels(content: Mapping[str, Any], scenes: Sequence[Scene]) -> bool:
    """Whether a FeatureCollection is in pixels: the challenge's files name no CRS and use "Class Name"."""
    if "crs" in content or len(scenes) != 1:
        return False
    features = content.get("features") or []
    if not scenes[0].georeferenced or not features:
        return True
    if "Class Name" not in (features[0].get("properties") or {}):
        return False
    # Without a CRS member GeoJSON is longitude and latitude; pixels leave that range unless all labels crowd the
    # scene's first corner, where the scene's own longitude and latitude decides.
    points = np.concatenate([_points((f.get("geometry") or {}).get("coordinates") or []) for f in features])
    if not points.size or (np.abs(points) > [180, 90]).any():
        return True
    from rasterio.warp import transform_bounds

    scene = scenes[0]
    corners = [scene.transform * c for c in ((0, 0), (scene.width, 0), (0, scene.height), (scene.width, scene.height))]
    xs, ys = zip(*corners, strict=True)
    west, south, east, north = transform_bounds(scene.crs, "EPSG:4326", min(xs), min(ys), max(xs), max(ys))
    inside = (points >= [west, south]).all(axis=1) & (points <= [east, north]).all(axis=1)
    return not inside.any()
