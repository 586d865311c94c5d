"""What sharing out costs and gives on one machine: search by Ray's workers, and training by several processes.

``search``: small made-up scenes (random weights: time does not depend on them), by the default method with the cores of
this machine against Ray with as many workers of one core, all warm, taking turns. Checks that the rows are the same.
``train``: a short training by one process with all cores against ``trainer=ddp_cpu`` with ``--processes`` processes and
their share of the cores each, both through train.py. Chips a second (validation counted) are those of the epochs after
the first: what a training of one epoch takes is taken off.

    python benchmarks/scale_out.py search [--scenes 40] [--side 512] [--workers 2] [--rounds 5]
    python benchmarks/scale_out.py train [--data <labelled scenes>] [--processes 2] [--epochs 3] [--rounds 3]
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from bench import lay_out, machine, markdown, medians, report, rounds

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.radiometry import band_names, estimate
from siamese_sat.data.scene import open_scene
from siamese_sat.device import pick_precision
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import Embedder, EmbedderSpec
from siamese_sat.report.table import write_csv
from siamese_sat.scaleout.cluster import RayPool, Share
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.run import Workers, search_scenes
from siamese_sat.search.template import TemplateSearch
from siamese_sat.searching import OneForAll

ROOT = Path(__file__).resolve().parents[1]
# Of a batch; background is a class too.
CLASSES, CHIPS = 4, 6


def search(args: argparse.Namespace, folder: Path) -> tuple[str, pd.DataFrame, list[str]]:
    """Rounds of local and Ray, their medians and ratio."""
    paths = [lay_out(folder / f"{n}.tif", args.side, n) for n in range(args.scenes)]
    scenes = {p.name: open_scene(p, (1, 2, 3, 4)) for p in paths}
    first = next(iter(scenes.values()))
    torch.manual_seed(0)
    radiometry = estimate([first], band_names(4), max_blocks=4, quiet=True)
    embedder = Embedder(EmbedderSpec(radiometry.names, args.backbone)).eval().requires_grad_(False)
    model = TrainedModel(embedder, radiometry, ChipSpec(), (1, 2, 3, 4), (), Calibration())
    device = torch.device("cpu")
    dtype = pick_precision(args.precision, device)
    engine = Engine(DeployedEmbedder(embedder, device, dtype, "auto"), device, dtype)
    method = TemplateSearch()
    shown = [Exemplar("thing", first, (120.0 + 60 * n, 100.0, 160.0 + 60 * n, 140.0)) for n in range(3)]
    method.prepare(model, engine, shown, OneForAll(radiometry), list(scenes.values()))
    tables: dict[str, set[bytes]] = {}

    def side(name: str, workers: Workers | None) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            found = search_scenes(scenes, method, {"thing": args.threshold}, 0.1, workers)
            assert not found.failed, found.failed
            tables.setdefault(name, set()).add(write_csv(found.detections, folder / "found.csv").read_bytes())
            megapixels = sum(s.megapixels for s in scenes.values())
            return {"seconds": found.seconds, "Mpx/s": megapixels / found.seconds, "detections": len(found.detections)}

        return run

    with RayPool(None, Share(1, 0, args.workers), gpus_wanted=False) as pool:
        local, shared = f"local, {torch.get_num_threads()} threads", f"ray, {args.workers} workers of 1 core"
        sides = {local: side(local, None), shared: side(shared, Workers(pool))}
        for run in sides.values():
            run()  # warm: processes started, work sent, files in the system's cache
        rows = rounds(sides, args.rounds)
    assert len(set.union(*tables.values())) == 1, "the rows differ"
    seconds = rows.pivot(index="round", columns="side", values="seconds")
    ratio = float((seconds[local] / seconds[shared]).median())
    verdict = f"ray is {ratio:.2f} times as fast as local (median of each round's own ratio); rows identical."
    return "scale_out_search", rows, [markdown(medians(rows, list(sides))), verdict]


def train(args: argparse.Namespace, folder: Path) -> tuple[str, pd.DataFrame, list[str]]:
    """Rounds of one process and of several, their medians and ratio."""
    cores = os.cpu_count() or 1
    data = args.data
    if data is None:
        made = [sys.executable, "-m", "siamese_sat.synthetic", str(folder / "data")]
        subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
        data = folder / "data" / "train"

    def seconds(trainer: list[str], threads: int, count: int) -> float:
        command = [
            sys.executable, str(ROOT / "train.py"), f"data.scenes={data}", f"model={args.backbone}",
            "model.weights=null", f"trainer.max_epochs={count}", f"sampler.batches_per_epoch={args.batches}",
            f"sampler.classes_per_batch={CLASSES}", f"sampler.chips_per_class={CHIPS}",
            "callbacks.finetune.warmup_epochs=0", f"paths.cache_dir={folder / 'chips'}",
            f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}", *trainer, *args.settings,
        ]  # fmt: skip
        waiting = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), **waiting}
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return time.perf_counter() - started

    def side(trainer: list[str], threads: int) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            # What starting, cutting chips and calibrating takes is in both, and goes with the difference.
            spent = seconds(trainer, threads, 1 + args.epochs) - seconds(trainer, threads, 1)
            if spent <= 0:
                raise RuntimeError("The machine is too busy for epochs so short; give more --batches or --epochs.")
            return {"seconds": spent, "chips/s": args.epochs * args.batches * CLASSES * CHIPS / spent}

        return run

    each = max(1, cores // args.processes)
    one, several = f"1 process of {cores} cores", f"{args.processes} processes of {each} core(s)"
    sides = {
        one: side(["trainer=cpu"], cores),
        several: side(["trainer=ddp_cpu", f"trainer.devices={args.processes}"], each),
    }
    rows = rounds(sides, args.rounds)
    rate = rows.pivot(index="round", columns="side", values="chips/s")
    ratio = float((rate[several] / rate[one]).median())
    verdict = f"{several}: {ratio:.2f} times the chips/s of {one} (median of each round's own ratio)."
    return "scale_out_train", rows, [markdown(medians(rows, list(sides))), verdict]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "train"))
    parser.add_argument("settings", nargs="*", help="further settings of the training")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--data", help="labelled scenes for train; made up where none are named")
    parser.add_argument("--batches", type=int, default=40, help="of an epoch")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args()
    started = time.strftime("%Y-%m-%d %H:%M")
    with tempfile.TemporaryDirectory() as folder:
        name, rows, parts = {"search": search, "train": train}[args.what](args, Path(folder))
    report(args.out, name, f"{machine()}; {started}", rows, parts)


if __name__ == "__main__":
    main()
