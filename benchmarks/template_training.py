"""Weights whose template features are trained on some classes, for search of others: an experiment.

Layers 2 and 3 are trained by episodes. In each, one chip of every class is a template, in eight views; two other chips
of the class, turned at random, should match it at their centre better than any place of the other classes' chips and of
the ground does (cross-entropy over cosines). What is learned forgets: the weights written are ``--mix`` of the
trained and the rest of those given (Wortsman et al. 2022, robust fine-tuning). Compare both by accuracy.py:

    python benchmarks/template_training.py --data <folder> --weights <file> --held pools boats turbines --out <file>
    python benchmarks/accuracy.py --data <folder> --quick --exemplars 5 --classes pools boats turbines --weights <file>
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imagery import CLASSES, load
from safetensors.torch import save_file
from torch import Tensor

from siamese_sat.data.radiometry import band_names, estimate, for_imagenet_weights
from siamese_sat.device import cpu_has_bf16, pick_device
from siamese_sat.errors import InputError
from siamese_sat.model.embedder import Embedder, build_embedder
from siamese_sat.model.statistics import measure
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.patch import rotate, sides_of, upright
from siamese_sat.search.whiten import Whitening, whiten

# Half sides of canvases, in pixels: of what is searched and of templates. Things are brought to 49 px, as in search.
QUERY, SUPPORT, SIZE = 72, 40, 49
VIEWS = 8
STAGES = {"layer2": 9, "layer3": 5}  # and cells of a template
QUERIES, GROUNDS = 2, 6  # a class and episode, an episode
BLUE_GREEN_RED = (1, 2, 3)


@dataclass
class Chips:
    """Chips ``[n, 3, h, w]`` of every class, and of places without a label."""

    things: dict[str, Tensor]
    ground: Tensor


def collect(data: Path, names: list[str], most: int, rng: np.random.Generator) -> Chips:
    """Chips from the training scenes of classes ``names``, at most ``most`` each."""
    things, ground = {}, []
    for name in names:
        scenes, labels, _, _ = load(data, name, True, BLUE_GREEN_RED)
        found = estimate(scenes[:: max(1, len(scenes) // 64)], max_blocks=4, quiet=True)
        radiometry = for_imagenet_weights(found, scenes[0].dtype)
        by_path = {s.path: s for s in scenes}
        cpu = torch.device("cpu")
        images = []
        for row in labels.sample(min(most, len(labels)), random_state=int(rng.integers(2**31))).itertuples():
            box = (float(row.x_min), float(row.y_min), float(row.x_max), float(row.y_max))
            exemplar = Exemplar(name, by_path[row.scene], box)
            scale = SIZE / max(sides_of(exemplar)) * 1.25 ** rng.uniform(-1, 1)
            try:
                images.append(upright(exemplar, radiometry, scale, QUERY, cpu)[0][:-1])
            except InputError:  # too near a border
                continue
        things[name] = torch.stack(images)
        for _ in range(15):
            scene = scenes[rng.integers(len(scenes))]
            x0, y0, x1, y1 = scene.aoi
            side = math.exp(rng.uniform(math.log(8), math.log(60)))
            if min(x1 - x0, y1 - y0) < 3 * side:
                continue
            x, y = rng.uniform(x0 + side, x1 - side), rng.uniform(y0 + side, y1 - side)
            near = labels[labels.scene == scene.path]
            if (
                (near.x_min < x + side) & (near.x_max > x - side) & (near.y_min < y + side) & (near.y_max > y - side)
            ).any():
                continue
            place = Exemplar("ground", scene, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))
            ground.append(upright(place, radiometry, SIZE / side, QUERY, cpu)[0][:-1])
        print(f"{name}: {len(images)} chips", flush=True)
    return Chips(things, torch.stack(ground))


def features(embedder: Embedder, images: Tensor) -> list[Tensor]:
    """Of both stages, ``[n, C, h, w]``, where the network is."""
    images = images.to(next(embedder.backbone.parameters()).device)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.is_cuda or cpu_has_bf16()):
        first = embedder.features(images.contiguous(memory_format=torch.channels_last), "layer2")
        later = embedder.further(first, "layer3", "layer2")
    return [first.float(), later.float()]


def correlate(images: Tensor, templates: Tensor) -> Tensor:
    """Cosines ``[n, m, h', w']`` of every place of ``[n, D, h, w]`` with ``[m, D, k, k]``."""
    unit = F.normalize(templates.flatten(1), dim=1).view_as(templates)
    energy = F.conv2d(images.square().sum(1, keepdim=True), images.new_ones(1, 1, *templates.shape[-2:]))
    return F.conv2d(images, unit) / energy.clamp(min=1e-6).sqrt()


def jitter(images: Tensor, each: int) -> Tensor:
    """A gain and an offset of its own for every ``each`` images and band, as another scene's light."""
    groups = len(images) // each
    gain = 1 + 0.1 * (2 * torch.rand(groups, 3, 1, 1) - 1)
    offset = 0.2 * (2 * torch.rand(groups, 3, 1, 1) - 1)
    return images * gain.repeat_interleave(each, 0) + offset.repeat_interleave(each, 0)


@torch.no_grad()
def whitenings(embedder: Embedder, chips: Chips, rng: np.random.Generator) -> list[Whitening]:
    """Of both stages, by chips turned at random."""
    every = [*chips.things.values(), chips.ground]
    images = torch.stack(
        [rotate(c[rng.integers(len(c))], rng.uniform(0, 6.28), QUERY) for c in every for _ in range(8)]
    )
    batches = [features(embedder, batch) for batch in images.split(8)]
    return [
        whiten(found, 128, 0.1)
        for k in range(len(STAGES))
        if (found := measure(b[k].permute(1, 0, 2, 3).flatten(1)[:, :, None] for b in batches)) is not None
    ]


def episode(
    embedder: Embedder, chips: Chips, white: list[Whitening], temperature: float, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """The loss, and the share of chips that match their template better than anything else does."""
    support, queries = [], []
    for images in chips.things.values():
        first, *others = (images[i] for i in rng.choice(len(images), 1 + QUERIES, replace=False))
        angle = rng.uniform(0, 2 * math.pi)
        support += [rotate(first, angle + view * 2 * math.pi / VIEWS, SUPPORT) for view in range(VIEWS)]
        queries += [rotate(one, rng.uniform(0, 2 * math.pi), QUERY) for one in others]
    picked = rng.choice(len(chips.ground), GROUNDS, replace=False)
    queries += [rotate(chips.ground[i], rng.uniform(0, 2 * math.pi), QUERY) for i in picked]
    templates = features(embedder, jitter(torch.stack(support), VIEWS))
    searched = features(embedder, jitter(torch.stack(queries), 1))
    loss, hits = searched[0].new_zeros(()), []
    for cells, whitening, mine, every in zip(STAGES.values(), white, templates, searched, strict=True):
        first = mine.shape[-1] // 2 - cells // 2
        inner = (..., slice(first, first + cells), slice(first, first + cells))
        kernels = torch.stack([whitening(one) for one in mine])[inner]
        match = correlate(torch.stack([whitening(one) for one in every]), kernels)
        match = match.view(len(queries), len(chips.things), VIEWS, *match.shape[-2:]).amax(2)
        middle = match.shape[-1] // 2
        for number in range(len(chips.things)):
            own = slice(QUERIES * number, QUERIES * (number + 1))
            near = slice(middle - 1, middle + 2)
            positive = match[own, number, near, near].flatten(1).amax(1)
            negative = torch.cat([match[: own.start, number], match[own.stop :, number]]).flatten()
            logits = torch.cat([positive[:, None], negative.expand(QUERIES, -1)], dim=1) / temperature
            loss = loss + F.cross_entropy(logits, logits.new_zeros(QUERIES, dtype=torch.long)) / len(chips.things)
            hits.append(float((positive > negative.max()).float().mean().detach()))
    return loss, float(np.mean(hits))


def main() -> None:
    """Trains and writes weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="ResNet50 v1 weights")
    parser.add_argument("--held", nargs="+", required=True, choices=CLASSES, help="classes that are not trained")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--mix", type=float, default=0.25, help="part of the trained weights in those written, 0 to 1")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--chips", type=int, default=60, help="of a class, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    trained_on = [n for n in CLASSES if n not in args.held]
    if len(trained_on) < 2:
        parser.error(f"--held leaves {len(trained_on)} of {len(CLASSES)} classes to train on; leave two at least.")
    logging.basicConfig(level=logging.ERROR)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    chips = collect(args.data, trained_on, args.chips, rng)
    embedder = build_embedder(band_names(3), variant="v1", weights=str(args.weights)).eval().requires_grad_(False)
    before = {k: v.clone() for k, v in embedder.backbone.state_dict().items()}
    embedder = embedder.to(pick_device(args.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for stage in STAGES for p in getattr(embedder.backbone, stage).requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=1e-4)
    started, losses, hits = time.perf_counter(), [], []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        if step % 50 == 0:
            white = whitenings(embedder, chips, rng)
        loss, hit = episode(embedder, chips, white, args.temperature, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        hits.append(hit)
        if step % 20 == 19:
            rate = (step + 1) / (time.perf_counter() - started)
            print(
                f"{step + 1}: loss {np.mean(losses[-20:]):.2f}, hits {np.mean(hits[-20:]):.2f}, {rate:.2f} episodes/s"
            )
    kept = {
        k: (torch.lerp(before[k], v, args.mix) if v.is_floating_point() else v).contiguous()
        for k, v in embedder.cpu().backbone.state_dict().items()
        if not k.startswith("layer4")
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, args.out)
    print(f"{args.out}: {args.mix:g} trained without {', '.join(args.held)}")


if __name__ == "__main__":
    main()
