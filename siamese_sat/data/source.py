"""Which rasters a setting means: a path, a list, a folder, a glob, or a text file of paths."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from siamese_sat.data.remote import S3, WILD, matching, need_credentials
from siamese_sat.errors import InputError

RASTER_SUFFIXES = {".tif", ".tiff", ".jp2", ".vrt", ".jpg", ".jpeg", ".png", ".img", ".bmp", ".ntf"}
REMOTE = ("s3://", "gs://", "az://", "http://", "https://", "/vsi")


def list_scenes(spec: str | Path | Sequence[str | Path]) -> list[str]:
    """Resolves a setting to raster paths, in a stable order and each once.

    Args:
        spec: one path; a list of anything below; a folder (its rasters, sorted, not its sub-folders); a glob
            (``**`` allowed); a ``.txt`` file with a path a line, relative to the file's folder, ``#`` for
            comments; an object, a folder or a glob in ``s3://``; or another remote path (``https://``,
            ``/vsi...``), which goes to GDAL untouched.

    Raises:
        InputError: a path does not exist, or a folder, glob or list names no raster.
    """
    specs: Iterable[str | Path] = [spec] if isinstance(spec, str | Path) else spec
    paths: dict[str, None] = {}
    for one in specs:
        paths.update(dict.fromkeys(_resolve(str(one))))
    if not paths:
        raise InputError(f"No scene is named by {spec!r}; give a raster, a folder, a glob or a list of them.")
    return list(paths)


def scene_keys(paths: Sequence[str]) -> dict[str, str]:
    """A short unique name for each path: its file name, or the whole path where two share a file name."""
    names = [path.rsplit("/", 1)[-1] for path in paths]
    return {(name if names.count(name) == 1 else path): path for name, path in zip(names, paths, strict=True)}


def _resolve(spec: str) -> list[str]:
    if spec.startswith(S3):
        return _of_store(spec)
    if spec.startswith(REMOTE):
        return [spec]
    path = Path(spec).expanduser()
    if path.is_dir():
        found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in RASTER_SUFFIXES)
        if not found:
            raise InputError(
                f"{spec}: no raster in this folder (looked for {', '.join(sorted(RASTER_SUFFIXES))}); "
                f"name another folder, or a glob such as '{spec}/**/*.tif'."
            )
        return found
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        return [p for line in lines if line for p in _resolve(_beside(path, line))]
    if path.is_file():
        return [str(path)]
    if any(c in spec for c in "*?["):
        found = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).suffix.lower() in RASTER_SUFFIXES)
        if found:
            return found
        raise InputError(f"{spec}: this glob matches no raster; check the pattern and the folder.")
    raise InputError(f"{spec}: no such file or folder; check the path.")


def _of_store(spec: str) -> list[str]:
    """An object that looks like a raster is left to GDAL, so that one is no listing of its whole folder."""
    need_credentials(spec)
    folder = spec.endswith("/")
    if not folder and not WILD.search(spec):
        if Path(spec).suffix.lower() in RASTER_SUFFIXES:
            return [spec]
        return _of_store(f"{spec}/")
    found = [uri for uri in matching(spec) if Path(uri).suffix.lower() in RASTER_SUFFIXES]
    if not found:
        raise InputError(
            f"{spec}: no raster in this folder (looked for {', '.join(sorted(RASTER_SUFFIXES))}); name another, or a "
            f"glob such as '{spec}**/*.tif'."
            if folder
            else f"{spec}: this glob matches no raster; check the pattern."
        )
    return found


def _beside(listing: Path, line: str) -> str:
    remote_or_absolute = line.startswith(REMOTE) or Path(line).is_absolute()
    return line if remote_or_absolute else str(listing.parent / line)
