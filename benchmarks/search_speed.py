"""How fast search is, from GeoTIFF to CSV, against the bare network, the original's way, and other libraries'.

All sides search the same made-up scenes for the same classes with the same network (random weights unless --weights
names some: time does not depend on them), 64 px windows 32 px apart, taking turns in every round. Sides:

    bare            windows that lie in memory, as the network takes them, through it and nothing else
    exact, dense    this product's window search, cut out one by one or from one pass over a tile
    original        the notebook's loop: per class, whole scene, list of patches, batches of 64, fp32
    sahi, torchgeo  their windows in a plain loop (``+ ours``: with this product's folded network and precision);
                    without either library a DataLoader over windows of our own making stands in for them ("loader")
    template            the default search for one class at 5 sizes
    pyramid, five       the layers that it uses: over its own levels; over a level for each of the 5 sizes

Prints medians, ratios (the median of each round's own) and stages; writes search_speed.md and .csv.

    python benchmarks/search_speed.py [--side 1024] [--scenes 1] [--rounds 5]
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import importlib.util
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench import Stages, lay_out, machine, markdown, medians, report, rounds
from others import Work, assembled, original, own_windows, sahi_windows, torchgeo_windows

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.radiometry import band_names, estimate
from siamese_sat.data.scene import open_scene
from siamese_sat.device import pick_device, pick_precision
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import build_embedder
from siamese_sat.model.runtime import RUNTIMES
from siamese_sat.report.table import write_csv
from siamese_sat.search.engine import Embedded, Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.ladder import ladder
from siamese_sat.search.level import UNIT
from siamese_sat.search.pooled import WindowSearch
from siamese_sat.search.run import search_scenes
from siamese_sat.search.template import TemplateSearch
from siamese_sat.search.tile import Job

BANDS = (1, 2, 3, 4)
# Scenes that differ; more of them are these again.
LANDS = 4


class Bench:
    """The common ground of all sides."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.paths = [self._scene(i) for i in range(args.scenes)]
        shown = lay_out(folder / "shown.tif", 1024, 99)
        torch.manual_seed(0)
        weights = str(args.weights) if args.weights else None
        embedder = build_embedder(band_names(4), args.backbone, args.variant, weights).eval().requires_grad_(False)
        self.device = pick_device(args.device)
        dtype = pick_precision(args.precision, self.device)
        self.plain = embedder.to(self.device)
        deployed = DeployedEmbedder(embedder, self.device, dtype, args.runtime)
        self.runtime = deployed.runtime
        self.engine = Engine(deployed, self.device, dtype, args.batch_size)
        scene = open_scene(shown, BANDS)
        self.radiometry = estimate([scene], quiet=True)
        self.model = TrainedModel(embedder, self.radiometry, ChipSpec(), BANDS, (), Calibration())
        corner = np.random.default_rng(0).integers(64, 900, (args.classes, 5, 2)).tolist()
        self.exemplars = [Exemplar(f"class {c:03}", scene, (x, y, x + 49, y + 49))
                          for c, row in enumerate(corner) for x, y in row]  # fmt: skip
        self.work = self._work()

    def _scene(self, number: int) -> Path:
        """Land of its own; of many scenes the same few come again, under other names."""
        path = self.folder / "scenes" / f"scene_{number}.tif"
        if number < LANDS:
            return lay_out(path, self.args.side, number)
        path.hardlink_to(self.folder / "scenes" / f"scene_{number % LANDS}.tif")
        return path

    def method(self, dense: bool) -> WindowSearch:
        """Window search in the original's geometry, ready."""
        found = WindowSearch(window=64, stride=32, dense=dense)
        found.prepare(self.model, self.engine, self.exemplars, lambda _: self.radiometry)
        return found

    def _work(self) -> Work:
        """Thresholds that a part of all windows reaches: random weights find everything alike."""
        method = self.method(False)
        first = open_scene(self.paths[0], BANDS)
        jobs = [Job(first.within((0, 0, 1024, 1024)), (64, 64))]
        found = self.engine.vectors(jobs, lambda _: self.radiometry, 64, 32)
        vectors = torch.cat([f.vectors.cpu() for f in found if isinstance(f, Embedded)])
        prototypes = {t.name: t.prototype.cpu() for t in method.targets}
        least = {n: float((vectors @ p).quantile(1 - self.args.found)) for n, p in prototypes.items()}
        out = self.folder / "found.csv"
        return Work(self.paths, prototypes, least, self.radiometry, 0.1, self.device, out)

    def ours(self, dense: bool) -> dict[str, Any]:
        """From files to a file."""
        stages = Stages()
        started = time.perf_counter()
        with stages.patched():
            scenes = {p.name: open_scene(p, BANDS) for p in self.paths}
            method = self.method(dense)
            least = {n: (v + 1) / 2 for n, v in self.work.thresholds.items()}
            found = search_scenes(scenes, method, least, 0.1)
            with stages.stage("write"):
                write_csv(found.detections, self.work.out)
        seconds = time.perf_counter() - started
        count = found.compared[method.classes[0]]
        return _row(seconds, count, stages, self.device, found=len(found.detections))

    def bare(self) -> dict[str, Any]:
        """The network alone on windows in memory, as many as a scene has; a CPU is given 8,192 at most."""
        count = (self.args.side // 32 - 1) ** 2
        count = count if self.device.type == "cuda" else min(8192, count)
        embedder, batch = self.engine.embedder, self.args.batch_size
        assert isinstance(embedder, DeployedEmbedder)
        chips = torch.randn(batch, 3, 64, 64).to(self.device, embedder.dtype, memory_format=torch.channels_last)
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(max(1, count // batch)):
                embedder.embed_projected(chips)
        _wait(self.device)
        return _row(time.perf_counter() - started, max(1, count // batch) * batch, Stages(), self.device)

    def template(self) -> dict[str, Any]:
        """The default search for one class."""
        stages = Stages()
        started = time.perf_counter()
        with stages.patched():
            scenes = {p.name: open_scene(p, BANDS) for p in self.paths}
            method = TemplateSearch(min_levels=2, max_levels=2, larger_levels=0)
            with stages.stage("prepare"):
                method.prepare(
                    self.model, self.engine, self.exemplars[:5], lambda _: self.radiometry, [*scenes.values()]
                )
            before = dict(stages.seconds)
            found = search_scenes(scenes, method, dict.fromkeys(method.classes, 0.3), 0.1)
            with stages.stage("write"):
                write_csv(found.detections, self.work.out)
        seconds = time.perf_counter() - started
        # Preparing is a stage of its own; what it reads and computes is not counted again.
        for name in before.keys() - {"prepare"}:
            stages.seconds[name] -= before[name]
        # The deep stage runs when a peak is compared closer.
        stages.seconds["score"] -= stages.seconds.get("deep forward", 0.0)
        self.steps = sorted({s for t in method.templates for s in t.steps})
        sizes = {"": [49.0]}
        self.five = [r.step for r in ladder(sizes, method.object_size, method.scale_step, 2, 2)[""]]
        return _row(seconds, found.compared[method.classes[0]], stages, self.device, found=len(found.detections))

    def pyramid(self, five: bool = False) -> dict[str, Any]:
        """The layers that the default search uses, over tiles of the same levels that lie in memory.

        Args:
            five: over a level for each of the sizes sought.
        """
        embedder, seconds = self.engine.embedder, 0.0
        for step in self.five if five else self.steps:
            side = max(8, self.args.side * UNIT // step // 8 * 8)
            tile = min(side, 1024)
            image = torch.randn(1, 4, tile, tile).to(self.device, memory_format=torch.channels_last)
            started = time.perf_counter()
            with torch.inference_mode():
                for _ in range(max(1, round(side**2 / tile**2)) * len(self.paths)):
                    embedder.further(embedder.features(image, "layer2"), "layer3", "layer2")
            _wait(self.device)
            ran = max(1, round(side**2 / tile**2)) * tile**2
            seconds += (time.perf_counter() - started) * side**2 / ran
        return {"seconds": seconds}

    def others(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """The original's way, and those libraries that are there."""

        def timed(function: Callable[..., dict[str, Any]], *args: Any) -> Callable[[], dict[str, Any]]:  # noqa: ANN401
            def run() -> dict[str, Any]:
                stages = Stages()
                started = time.perf_counter()
                found = function(self.work, args[0], stages, *args[1:])
                return _row(time.perf_counter() - started, found.pop("windows"), stages, self.device, **found)

            return run

        sides = {"original": timed(original, self.plain)}
        workers = self.args.workers
        ways: dict[str, Callable[..., Any]] = {}
        if importlib.util.find_spec("sahi"):
            ways["sahi"] = sahi_windows
        else:
            print("sahi is not installed (pip install sahi): its side is left out.")
        if importlib.util.find_spec("torchgeo"):
            ways["torchgeo"] = lambda path: torchgeo_windows(path, workers)
        else:
            print("torchgeo is not installed (pip install torchgeo): its side is left out.")
        if not ways:
            ways["loader"] = lambda path: own_windows(path, workers)
        for name, way in ways.items():
            sides[name] = timed(assembled, self.plain, way)
            sides[f"{name} + ours"] = timed(assembled, self.engine.embed, way)
        return sides


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(seconds: float, windows: int, stages: Stages, device: torch.device, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"seconds": seconds, "windows": windows, "windows/s": windows / seconds, **more, **stages.seconds}


RATIOS = [  # title, one, other, column: how many times the one is faster; at least
    ("exact against the original's way", "exact", "original", "seconds", 20.0),
    ("dense against the original's way", "dense", "original", "seconds", 50.0),
    ("exact against the bare forward", "exact", "bare", "windows/s", 0.95),
    ("dense against exact", "dense", "exact", "windows/s", 3.5),
    ("template against the bare pyramid, its own levels", "template", "pyramid", "seconds", 0.80),
    ("template against the bare pyramid, a level a size", "template", "five", "seconds", 0.80),
    *((f"exact against {name}", "exact", name, "seconds", 3.0)
      for name in ("sahi", "sahi + ours", "torchgeo", "torchgeo + ours", "loader", "loader + ours")),
]  # fmt: skip


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Each round's own ratio, and the median of them."""
    lines = []
    for title, one, other, column, least in RATIOS:
        if not {one, other} <= set(rows.side):
            continue
        a, b = (rows[rows.side == s].set_index("round")[column] for s in (one, other))
        ratio = b / a if column == "seconds" else a / b
        lines.append(
            {"ratio": title, "median": ratio.median(), "from": ratio.min(), "to": ratio.max(), "wanted": least}
        )
    return pd.DataFrame(lines).set_index("ratio")


def main() -> None:
    """Runs the rounds and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="pixels of a scene")
    parser.add_argument("--scenes", type=int, default=1)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--found", type=float, default=0.02, help="part of a class's windows to report")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", help="these only")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--variant", default="v1.5", choices=["v1", "v1.5"])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runtime", default="auto", choices=RUNTIMES)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="of the libraries' DataLoaders")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/search_speed"))
    args = parser.parse_args()
    logging.getLogger("siamese_sat").setLevel(logging.ERROR)
    begun = machine()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        sides = {
            "bare": bench.bare, "exact": lambda: bench.ours(False), "dense": lambda: bench.ours(True),
            "template": bench.template, "pyramid": bench.pyramid,
            "five": lambda: bench.pyramid(True), **bench.others(),
        }  # fmt: skip
        if args.sides:
            sides = {n: s for n, s in sides.items() if n in args.sides}
        for name in ("bare", "exact", "dense", "template"):  # the first run of each finds memory and kernels
            if name in sides:
                sides[name]()
        rows = rounds(sides, args.rounds)
    table = medians(rows, list(sides))
    main_columns = [c for c in ("seconds", "windows", "windows/s", "found") if c in table]
    stages = table.drop(columns=main_columns)
    title = (
        f"{args.scenes} scene(s) of {args.side} x {args.side} px, 4 bands, uint16; {args.classes} classes; "
        f"{args.backbone}, {bench.engine.dtype}, {bench.runtime}; medians of {args.rounds} rounds.\n\n"
        f"Before: {begun}\n\nAfter: {machine()}"
    )
    reading = (
        "Seconds by stage. Ours reads in a thread of its own: `read` passes beside the rest, `wait for tiles` adds."
    )
    report(args.out, "search_speed", title, rows,
           [markdown(table[main_columns]), markdown(ratios(rows)), reading, markdown(stages)])  # fmt: skip


if __name__ == "__main__":
    main()
