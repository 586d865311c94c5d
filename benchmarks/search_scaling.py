"""What search costs with more classes, larger scenes, more scenes: window search in the original's way of looking.

Classes: one scene, 1 to 100 classes, taking turns in one process. Scene sizes and numbers of scenes: each in a process
of its own, taking turns too, so that its peak memory is its own; what it holds before the search, libraries and
network, is given beside it. Scenes are 3 bands of 8 bits; windows are large by default, so that reading
and preparing, which grow with the pixels, are not hidden behind the network.

    python benchmarks/search_scaling.py [--parts classes sizes scenes] [--megapixels 1 25 100 400]
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import contextlib
import json
import logging
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench import Stages, lay_out, machine, markdown, medians, report, rounds

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import open_scene
from siamese_sat.device import pick_device, pick_precision
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import build_embedder
from siamese_sat.model.runtime import RUNTIMES
from siamese_sat.report.table import write_csv
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.pooled import WindowSearch
from siamese_sat.search.run import search_scenes
from siamese_sat.search.template import TemplateSearch

BANDS = (3, 2, 1)
RADIOMETRY = Radiometry(("B", "G", "R"), 255.0, (0.2, 0.2, 0.2), (0.1, 0.1, 0.1))
# As a training leaves one: what scores mean is not learned from the scenes.
TRAINED = Calibration(0.49, 0.51, "linear")


class Search:
    """A network and exemplars, ready to search."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(0)
        embedder = build_embedder(("B", "G", "R"), args.backbone, weights=None).eval().requires_grad_(False)
        device = pick_device(args.device)
        dtype = pick_precision(args.precision, device)
        deployed = DeployedEmbedder(embedder, device, dtype, args.runtime)
        self.engine = Engine(deployed, device, dtype, args.batch_size)
        self.model = TrainedModel(embedder, RADIOMETRY, ChipSpec(), BANDS, (), TRAINED)

    def __call__(self, paths: Sequence[Path], shown: Path, classes: int) -> dict[str, Any]:
        """From files to a file."""
        args = self.args
        source = open_scene(shown, BANDS)
        side = args.window / (1 + 2 * self.model.chip.padding)
        corner = np.random.default_rng(0).uniform(0, 1024 - args.window, (classes, 2, 2)).tolist()
        exemplars = [Exemplar(f"class {c:03}", source, (x, y, x + side, y + side))
                     for c, row in enumerate(corner) for x, y in row]  # fmt: skip
        method = (
            TemplateSearch() if args.method == "template"
            else WindowSearch(window=args.window, stride=32, dense=args.method == "dense", calibration="training")
        )  # fmt: skip
        stages = Stages()
        started = time.perf_counter()
        with stages.patched():
            scenes = {p.name: open_scene(p, BANDS) for p in paths}
            with stages.stage("prepare"):
                method.prepare(self.model, self.engine, exemplars, lambda _: RADIOMETRY, list(scenes.values()))
            searching = time.perf_counter()
            found = search_scenes(scenes, method, dict.fromkeys(method.classes, args.threshold), 0.1)
            ended = time.perf_counter()
            with stages.stage("write"):
                write_csv(found.detections, shown.with_name("found.csv"))
        area = sum(s.megapixels for s in scenes.values())
        return {
            "seconds": time.perf_counter() - started, "Mpx": area, "s/Mpx": (ended - searching) / area,
            "found": len(found.detections), **stages.seconds,
        }  # fmt: skip


def peak() -> float:
    """Most memory that this process has held, in MB.

    Linux counts in getrusage what the parent held when it started the child; what it says of the process itself it says
    in /proc.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Lets the peak begin anew from what is held now, where the system can: loading a network is not searching."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def child(args: argparse.Namespace) -> None:
    """One search in a process of its own: its figures as one line of JSON."""
    search = Search(args)
    forget_peak()
    before = peak()
    found = search([Path(p) for p in args.child], args.shown, args.classes_of_child)
    print(json.dumps({**found, "MB before": before, "MB peak": peak()}))


def apart(args: argparse.Namespace, paths: Sequence[Path], shown: Path, classes: int = 5) -> dict[str, Any]:
    """Runs `child`."""
    command = [sys.executable, __file__, "--child", *map(str, paths), "--shown", str(shown)]
    for name in ("window", "threshold", "backbone", "device", "precision", "runtime", "batch_size", "method"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run([*command, "--classes-of-child", str(classes)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(args: argparse.Namespace, folder: Path) -> list[tuple[str, pd.DataFrame, str]]:
    """Title, rows and table of each part."""
    shown = lay_out(folder / "shown.tif", 1024, 99, 3, "uint8")
    found = []
    if "classes" in args.parts:
        search = Search(args)
        scene = lay_out(folder / "classes.tif", args.class_side, 0, 3, "uint8")
        sides = {f"{n} classes": lambda n=n: search([scene], shown, n) for n in args.classes}
        next(iter(sides.values()))()
        found.append(("Number of classes", *table(args, sides, "seconds")))
    if "sizes" in args.parts:
        sides = {}
        for area in args.megapixels:
            path = lay_out(folder / f"{area:g}.tif", round(math.sqrt(area * 1e6)), 0, 3, "uint8")
            sides[f"{area:g} Mpx"] = lambda path=path: apart(args, [path], shown)
        found.append(("Size of the scene", *table(args, sides, "s/Mpx")))
    if "scenes" in args.parts:
        sides = {}
        paths = [lay_out(folder / f"many_{i}.tif", args.scene_side, i, 3, "uint8") for i in range(max(args.scenes))]
        for count in args.scenes:
            sides[f"{count} scenes"] = lambda count=count: apart(args, paths[:count], shown)
        found.append(("Number of scenes", *table(args, sides, "s/Mpx")))
    return found


def table(args: argparse.Namespace, sides: dict[str, Any], figure: str) -> tuple[pd.DataFrame, str]:
    """Rows of all rounds, and their medians with the ratio of each side's figure to the one before it and the first."""
    rows = rounds(sides, args.rounds)
    shown = medians(rows, list(sides))
    shown.insert(0, f"{figure}, to the first", shown[figure] / shown[figure].iloc[0])
    shown.insert(1, f"{figure}, to the one above", shown[figure] / shown[figure].shift())
    if "MB peak" in shown:
        shown.insert(2, "MB more than the one above", shown["MB peak"] - shown["MB peak"].shift())
    return rows, markdown(shown)


def main() -> None:
    """Runs the parts and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["classes", "sizes", "scenes"])
    parser.add_argument("--method", default="exact", choices=["exact", "dense", "template"])
    parser.add_argument("--classes", nargs="+", type=int, default=[1, 5, 20, 100])
    parser.add_argument("--class-side", type=int, default=4096, help="pixels of the scene for classes")
    parser.add_argument("--megapixels", nargs="+", type=float, default=[1, 25, 400])
    parser.add_argument("--scenes", nargs="+", type=int, default=[1, 10, 50])
    parser.add_argument("--scene-side", type=int, default=1024)
    parser.add_argument("--window", type=int, default=256, help="side in pixels; half of it is the stride")
    parser.add_argument("--threshold", type=float, default=0.999, help="random weights find everything alike")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runtime", default="auto", choices=RUNTIMES)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/search_scaling"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--shown", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--classes-of-child", type=int, default=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.getLogger("siamese_sat").setLevel(logging.ERROR)
    if args.child:
        child(args)
        return
    begun = machine()
    with tempfile.TemporaryDirectory() as folder:
        parts = measure(args, Path(folder))
    title = (
        f"{args.method}, windows of {args.window} px, {args.backbone}, runtime={args.runtime}; "
        f"medians of {args.rounds} rounds.\n\n"
        f"Before: {begun}\n\nAfter: {machine()}"
    )
    rows = pd.concat([part.assign(part=name) for name, part, _ in parts])
    report(args.out, "search_scaling", title, rows, [f"**{name}**\n\n{shown}" for name, _, shown in parts])


if __name__ == "__main__":
    main()
