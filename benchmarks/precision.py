"""How close every runtime in every precision comes to PyTorch in fp32, and how much faster it is.

Windows of made-up scenes, normalised as a search does it, are embedded by each; the cosine of a window's embedding to
that of eager fp32 should be 0.999 or more. Random weights (without --weights) find windows much alike: the cosine of
what is left without the mean embedding, which stands beside it, tells more there. All sides take turns in every round.
Writes precision.md and .csv.

    python benchmarks/precision.py [--weights <file>] [--windows 512] [--rounds 5] [--runtimes eager openvino]
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from bench import lay_out, machine, markdown, report, rounds
from torch import Tensor

from siamese_sat.data.radiometry import band_names, estimate
from siamese_sat.data.scene import open_scene
from siamese_sat.device import pick_device
from siamese_sat.errors import InputError
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import Embedder, build_embedder
from siamese_sat.model.runtime import RUNTIMES
from siamese_sat.search.engine import Engine

BANDS = (1, 2, 3, 4)
EXACT = "eager fp32"
LEAST = 0.999
QUANTILES = (0.0, 0.001, 0.01, 0.5)


def windows(args: argparse.Namespace, folder: Path, embedder: Embedder, device: torch.device) -> list[Tensor]:
    """Full batches ``[n, 4, 64, 64]`` of normalised windows, from one scene after the other."""
    engine = Engine(DeployedEmbedder(embedder, device), device, batch_size=args.batch_size)
    found: list[Tensor] = []
    number = 0
    while len(found) * args.batch_size < args.windows:
        scene = open_scene(lay_out(folder / f"scene_{number}.tif", args.side, number), BANDS)
        batches = engine.windows(scene, estimate([scene], quiet=True), (64, 64), 64, 32)
        found += [b.chips for b in batches if len(b.chips) == args.batch_size]
        number += 1
    return found[: -(-args.windows // args.batch_size)]


def ways(args: argparse.Namespace, embedder: Embedder, device: torch.device) -> dict[str, DeployedEmbedder]:
    """The embedder by runtime and precision, those that this machine has; eager fp32 always."""
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device.type == "cuda":
        precisions["fp16"] = torch.float16
    found = {EXACT: DeployedEmbedder(embedder, device)}
    probe = torch.zeros(args.batch_size, len(BANDS), 64, 64, device=device)
    for runtime in args.runtimes:
        for precision, dtype in precisions.items():
            try:
                way = DeployedEmbedder(embedder, device, dtype, runtime)
                way(probe)  # compiles
            except InputError as error:
                print(f"{runtime} {precision} is left out: {error}")
                continue
            found[f"{runtime} {precision}"] = way
    return found


@torch.inference_mode()
def embedded(way: DeployedEmbedder, batches: list[Tensor]) -> Tensor:
    """``[n, D]`` on the CPU."""
    return torch.cat([way(batch) for batch in batches]).cpu()


def timed(way: DeployedEmbedder, batches: list[Tensor]) -> dict[str, float]:
    """A side's turn."""
    started = time.perf_counter()
    vectors = embedded(way, batches)
    return {"windows/s": len(vectors) / (time.perf_counter() - started)}


def agreement(vectors: Mapping[str, Tensor]) -> pd.DataFrame:
    """Cosines of each side's embeddings to those of eager fp32, a row for each side."""
    exact = vectors[EXACT]
    mean = exact.mean(0)
    lines = []
    for name, found in vectors.items():
        cosine = (found.double() * exact.double()).sum(1)
        centred = F.cosine_similarity(found.double() - mean, exact.double() - mean)
        line: dict[str, object] = {"side": name}
        line |= {f"cosine, {100 * q:g} %": f"{float(cosine.quantile(q)):.5f}" for q in QUANTILES}
        line[f"share >= {LEAST}"] = f"{float((cosine >= LEAST).double().mean()):.4f}"
        line["without the mean, 1 %"] = f"{float(centred.quantile(0.01)):.5f}"
        lines.append(line)
    return pd.DataFrame(lines).set_index("side")


def speed(rows: pd.DataFrame) -> pd.DataFrame:
    """Median windows a second, and each round's own ratio to eager fp32."""
    table = rows.pivot(index="round", columns="side", values="windows/s")[list(dict.fromkeys(rows.side))]
    ratio = table.div(table[EXACT], axis=0)
    return pd.DataFrame(
        {"windows/s": table.median(), f"times {EXACT}": ratio.median(), "from": ratio.min(), "to": ratio.max()}
    )


def main() -> None:
    """Compares, times and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=512, help="to embed, in full batches")
    parser.add_argument("--side", type=int, default=1024, help="pixels of a scene")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES[1:]), choices=RUNTIMES[1:])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--variant", default="v1.5", choices=["v1", "v1.5"])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/precision"))
    args = parser.parse_args()
    logging.getLogger("siamese_sat").setLevel(logging.ERROR)
    begun = machine()
    device = pick_device(args.device)
    torch.manual_seed(0)
    weights = str(args.weights) if args.weights else None
    embedder = build_embedder(band_names(4), args.backbone, args.variant, weights).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        batches = windows(args, Path(folder), embedder, device)
    sides = ways(args, embedder, device)
    vectors = {name: embedded(way, batches) for name, way in sides.items()}
    turns: dict[str, Callable[[], Mapping[str, float]]] = {n: partial(timed, w, batches) for n, w in sides.items()}
    rows = rounds(turns, args.rounds)
    title = (
        f"{len(batches) * args.batch_size} windows of 64 px, {args.backbone}, "
        f"{'random weights' if weights is None else args.weights.name}; medians of {args.rounds} rounds.\n\n"
        f"Before: {begun}\n\nAfter: {machine()}"
    )
    report(args.out, "precision", title, rows, [markdown(agreement(vectors)), markdown(speed(rows))])


if __name__ == "__main__":
    main()
