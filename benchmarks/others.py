"""The other sides of search_speed.py: the original's loop, and what a user would assemble from other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import torch
from bench import Stages
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import batched_nms, nms

from siamese_sat.data.radiometry import Radiometry

WINDOW, STRIDE, BATCH = 64, 32, 64
COLUMNS = ["x_min", "y_min", "x_max", "y_max", "class_name", "filename", "score"]
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Work:
    """What is searched for, the same for all sides.

    Attributes:
        scenes: files.
        prototypes: unit vector ``[D]`` by class.
        thresholds: least cosine by class.
        radiometry: of all scenes.
        nms_iou: of suppression.
        device: where the network is.
        out: file to write.
    """

    scenes: Sequence[Path]
    prototypes: Mapping[str, Tensor]
    thresholds: Mapping[str, float]
    radiometry: Radiometry
    nms_iou: float
    device: torch.device
    out: Path


def original(work: Work, network: Network, stages: Stages) -> dict[str, Any]:
    """As the notebook had it, in PyTorch.

    Each class reads every scene again, cuts a list of patches, embeds all of them in fp32, batch after batch, and
    suppresses over all scenes at once.
    """
    rows: list[tuple[Any, ...]] = []
    windows = 0
    for name, prototype in work.prototypes.items():
        found: list[tuple[Any, ...]] = []
        for path in work.scenes:
            with stages.stage("read"), rasterio.open(path) as source:
                scene = source.read()
            with stages.stage("normalise"):
                scene = scene.astype(np.float32) / work.radiometry.scale
                mean, std = (
                    np.array(v, np.float32)[:, None, None] for v in (work.radiometry.mean, work.radiometry.std)
                )
                scene = (scene - mean) / std
                patches, places = [], []
                for y in range(0, scene.shape[1] - WINDOW + 1, STRIDE):
                    for x in range(0, scene.shape[2] - WINDOW + 1, STRIDE):
                        patches.append(scene[:, y : y + WINDOW, x : x + WINDOW])
                        places.append((x, y))
            windows += len(patches)
            scores: list[float] = []
            for start in range(0, len(patches), BATCH):
                with stages.stage("normalise"):
                    batch = torch.from_numpy(np.array(patches[start : start + BATCH])).to(work.device)
                with stages.stage("forward", work.device), torch.inference_mode():
                    vectors = network(batch)
                with stages.stage("score"):
                    scores += (vectors.float() @ prototype.to(work.device)).tolist()
            found += [
                (x, y, x + WINDOW, y + WINDOW, name, path.name, s)
                for (x, y), s in zip(places, scores, strict=True)
                if s >= work.thresholds[name]
            ]
        with stages.stage("suppress"):
            if found:
                boxes = torch.tensor([f[:4] for f in found], dtype=torch.float32)
                kept = nms(boxes, torch.tensor([f[6] for f in found]), work.nms_iou)
                rows += [found[i] for i in kept.tolist()]
    _write(rows, work, stages)
    return {"windows": windows, "found": len(rows)}


def assembled(work: Work, network: Network, stages: Stages, windows_of: Callable[..., Iterator[Any]]) -> dict[str, Any]:
    """A loop over some library's windows: all classes at once, suppression scene by scene.

    Args:
        work: what is searched for.
        network: normalised ``[n, C, 64, 64]`` to vectors.
        stages: clocks.
        windows_of: a scene's raw batches ``[n, C, 64, 64]`` with their corners ``[n, 2]`` (x, y).
    """
    names = list(work.prototypes)
    prototypes = torch.stack([work.prototypes[n] for n in names]).to(work.device)
    least = torch.tensor([work.thresholds[n] for n in names]).to(work.device)
    rows: list[tuple[Any, ...]] = []
    windows = 0
    for path in work.scenes:
        boxes, classes, scores = [], [], []
        batches = windows_of(path)
        while True:
            with stages.stage("read"):
                got = next(batches, None)
            if got is None:
                break
            raw, corners = got
            windows += len(raw)
            with stages.stage("normalise"):
                chips = work.radiometry.normalise(raw.to(work.device))
            with stages.stage("forward", work.device), torch.inference_mode():
                vectors = network(chips).float()
            with stages.stage("score"):
                every = vectors @ prototypes.T
                place, number = torch.nonzero(every >= least, as_tuple=True)
                corner = corners[place.cpu()].float()
                boxes.append(torch.cat([corner, corner + WINDOW], dim=1))
                classes.append(number.cpu())
                scores.append(every[place, number].cpu())
        with stages.stage("suppress"):
            box, number, score = torch.cat(boxes), torch.cat(classes), torch.cat(scores)
            kept = batched_nms(box, score, number, work.nms_iou).tolist()
            rows += [(*box[i].tolist(), names[int(number[i])], path.name, float(score[i])) for i in kept]
    _write(rows, work, stages)
    return {"windows": windows, "found": len(rows)}


def _write(rows: list[tuple[Any, ...]], work: Work, stages: Stages) -> None:
    with stages.stage("write"):
        frame = pd.DataFrame(rows, columns=COLUMNS).sort_values("score", ascending=False)
        frame.to_csv(work.out, index=False)


def sahi_windows(path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """The scene in memory, cut where ``sahi.slicing.get_slice_bboxes`` says."""
    from sahi.slicing import get_slice_bboxes

    with rasterio.open(path) as source:
        scene = source.read()
    corners = get_slice_bboxes(*scene.shape[1:], WINDOW, WINDOW, False, 1 - STRIDE / WINDOW, 1 - STRIDE / WINDOW)
    for start in range(0, len(corners), BATCH):
        part = corners[start : start + BATCH]
        chips = np.stack([scene[:, y0:y1, x0:x1] for x0, y0, x1, y1 in part])
        yield torch.from_numpy(chips), torch.tensor([c[:2] for c in part])


def torchgeo_windows(path: Path, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``RasterDataset`` and ``GridGeoSampler`` under a DataLoader."""
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler, Units

    class Scenes(RasterDataset):
        filename_glob = path.name

    data = Scenes(str(path.parent))
    sampler = GridGeoSampler(data, size=WINDOW, stride=STRIDE, units=Units.PIXELS)
    with rasterio.open(path) as source:
        inverse = ~source.transform

    def collate(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        # Of map coordinates the upper left; whatever form of bounds this version gives.
        corners = [_corner(s["bounds"]) for s in samples]
        pixels = stack_samples([{"image": s["image"]} for s in samples])["image"]
        return pixels, torch.tensor([_pixel(inverse, c) for c in corners])

    yield from DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=workers, collate_fn=collate)


def _corner(bounds: Any) -> tuple[float, float]:  # noqa: ANN401 - differs with torchgeo's version
    if isinstance(bounds, tuple):
        return float(bounds[0].start), float(bounds[1].stop)
    return float(bounds.minx), float(bounds.maxy)


def _pixel(inverse: Any, corner: tuple[float, float]) -> list[int]:  # noqa: ANN401 - affine is untyped
    return [round(v) for v in inverse * corner]


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """In torchgeo's manner without torchgeo: a window of an open file an item."""

    def __init__(self, path: Path) -> None:
        self.path, self.source = path, None
        with rasterio.open(path) as source:
            self.corners = [
                (x, y)
                for y in range(0, source.height - WINDOW + 1, STRIDE)
                for x in range(0, source.width - WINDOW + 1, STRIDE)
            ]

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.source is None:
            self.source = rasterio.open(self.path)
        x, y = self.corners[index]
        return torch.from_numpy(self.source.read(window=((y, y + WINDOW), (x, x + WINDOW)))), torch.tensor([x, y])


def own_windows(path: Path, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`Windows` under a DataLoader."""
    yield from DataLoader(Windows(path), batch_size=BATCH, num_workers=workers)
