"""What the speed benchmarks share: scenes of any size, stage clocks, rounds that take sides in turn, a report."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import torch
from rasterio.transform import from_origin

from siamese_sat.data.scene import SceneReader
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search import dense, engine, run, sliding, template
from siamese_sat.search.maps import Whitenings
from siamese_sat.search.template import TemplateSearch
from siamese_sat.synthetic import CLASSES, make_scene

# Of the made-up land that larger scenes are laid out with.
BLOCK = 1024


class Stages:
    """Seconds by stage; `patched` takes the product's own steps apart without a line in the product."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stage(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Adds what happens inside to a stage; on a GPU only with its device, for which it then waits."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever it is
            with self.stage(name):
                return function(*args, **options)

        return timed

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Times reading (in its own thread), waiting for it, normalising, cutting, the network, scores, suppression."""
        names: list[tuple[Any, str, str]] = [
            (DeployedEmbedder, "embed_projected", "forward"),
            (engine, "cut", "cut"),
            (sliding.Sliding, "_pooled", "forward"),
            (sliding.Sliding, "_head", "forward"),
            (DeployedEmbedder, "features", "forward"),
            (dense, "to_level", "normalise"),
            (DeployedEmbedder, "project", "normalise"),
            (run, "suppress", "suppress"),
            (SceneReader, "read", "read"),
            (dense, "later_stage", "deep forward"),
            (Whitenings, "__call__", "whiten"),
            (template, "find_peaks", "score"),
            (TemplateSearch, "_closer", "score"),
        ]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in names]
        plain = engine.ahead

        def waited(items: Generator[Any, None, None], depth: int = 2) -> Iterator[Any]:
            found = plain(items, depth)
            while True:
                with self.stage("wait for tiles"):
                    got = next(found, None)
                if got is None:
                    return
                yield got
                del got

        modules = (engine, dense)
        try:
            for owner, name, stage in names:
                setattr(owner, name, self._timed(getattr(owner, name), stage))
            for module in modules:
                module.ahead = waited  # type: ignore[attr-defined]
            yield
        finally:
            for owner, name, function in reversed(before):
                setattr(owner, name, function)
            for module in modules:
                module.ahead = plain  # type: ignore[attr-defined]


def lay_out(path: Path, side: int, seed: int = 0, bands: int = 4, dtype: str = "uint16") -> Path:
    """Writes a ``side x side`` GeoTIFF of made-up land, block by block: memory does not grow with it."""
    rng = np.random.default_rng(seed)
    land, _ = make_scene(rng, BLOCK, BLOCK, CLASSES[:4], 3, 100)
    if dtype == "uint8":
        land = (land / 40).clip(1, 255)
    land = land[:bands].astype(dtype)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 2, "zlevel": 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=bands, dtype=dtype, crs="EPSG:32643",
        transform=from_origin(5e5 + seed * 1e5, 2e6, 1, 1), photometric="MINISBLACK", alpha="unspecified",
        num_threads="all_cpus", bigtiff="if_safer", **options,
    ) as target:  # fmt: skip
        for y in range(0, side, BLOCK):
            for x in range(0, side, BLOCK):
                turned = np.rot90(land, int(rng.integers(4)), (1, 2))[:, : side - y, : side - x]
                height, width = turned.shape[1:]
                target.write(np.ascontiguousarray(turned), window=((y, y + height), (x, x + width)))
    return path


def machine() -> str:
    """What ran it, with how many threads, and how busy it was."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; load {load}"
    )


def rounds(sides: Mapping[str, Callable[[], Mapping[str, Any]]], count: int) -> pd.DataFrame:
    """Every side once a round, each round beginning with another one: what else the machine does falls on all alike."""
    rows: list[dict[str, Any]] = []
    names = list(sides)
    for number in range(count):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            started = time.perf_counter()
            found = dict(sides[name]())
            found.setdefault("seconds", time.perf_counter() - started)
            rows.append({"side": name, "round": number, **found})
            print(f"round {number}  {name:42} {found['seconds']:9.3f} s", flush=True)
    return pd.DataFrame(rows)


def medians(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The median of each side's figures, in this order."""
    return rows.drop(columns="round").groupby("side", sort=False).median(numeric_only=True).reindex(list(names))


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A Markdown table; the index first, nothing where nothing was measured."""
    shown = table.reset_index()

    def form(value: Any) -> str:  # noqa: ANN401 - a cell
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:,.{digits}f}" if abs(value) < 100 else f"{value:,.0f}"
        return str(value)

    rows = [list(map(str, shown.columns)), ["---"] * len(shown.columns)]
    rows += [[form(v) for v in row] for row in shown.astype(object).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def report(out: Path, name: str, title: str, rows: pd.DataFrame, parts: Sequence[str]) -> None:
    """Prints, and writes ``<name>.md`` and ``<name>.csv``."""
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(out / f"{name}.csv", index=False)
    text = "\n\n".join([title, *parts]) + "\n"
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    print("\n" + text)
