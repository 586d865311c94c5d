"""Labelled scenes in, P x K batches of normalised chips out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from siamese_sat.data.annotation import LabelReader, coco_scenes
from siamese_sat.data.augment import Augment
from siamese_sat.data.chip import BACKGROUND, ChipSpec, cut_chips, sample_background
from siamese_sat.data.radiometry import Radiometry, band_names, estimate
from siamese_sat.data.sampler import PKSampler
from siamese_sat.data.scene import AlphaRule, Scene, open_scene
from siamese_sat.data.source import list_scenes
from siamese_sat.data.split import split_chips
from siamese_sat.distributed import ranks
from siamese_sat.errors import InputError

log = logging.getLogger(__name__)

Aoi = Sequence[float] | Mapping[str, Sequence[float]] | None
Paths = str | Sequence[str]


def open_scenes(
    scenes: Paths | None,
    bands: Sequence[int],
    alpha: AlphaRule = "auto",
    aoi: Aoi = None,
    labels: Paths | None = None,
) -> list[Scene]:
    """Opens every raster that the settings name.

    Args:
        scenes: see `list_scenes`; None takes the images that the COCO files in ``labels`` name.
        bands: 1-based numbers in the model's order.
        alpha: see `open_scene`.
        aoi: one pixel window for all scenes, or one by file name (scenes not named are used whole).
        labels: label files, where ``scenes`` is None.
    """
    if scenes is None:
        if labels is None:
            raise InputError("No scenes are given; set data.scenes to a raster, a folder or a glob.")
        paths = [p for file in ([labels] if isinstance(labels, str) else labels) for p in coco_scenes(file)]
    else:
        paths = list_scenes(scenes)
    opened = [open_scene(path, bands, alpha) for path in paths]
    if isinstance(aoi, Mapping):
        known = {s.name for s in opened} | {Path(s.name).stem for s in opened}
        strange = sorted(set(aoi) - known)
        if strange:
            raise InputError(f"The area of interest names {strange[0]!r}, which is none of the scenes.")
    return [cut_to(s, aoi) for s in opened]


def cut_to(scene: Scene, aoi: Aoi) -> Scene:
    """The scene within its area of interest: one for all, or by file name with or without its ending."""
    if isinstance(aoi, Mapping):
        return scene.within(aoi.get(scene.name, aoi.get(Path(scene.name).stem)))
    return scene.within(aoi)


class ChipDataModule(L.LightningDataModule):
    """Cuts chips once, splits them, and serves them.

    Args:
        sampler: called with ``labels=``, ``background=`` and ``seed=``; gives the P x K sampler of training.
        chip: size, padding, shape.
        augment: applied to training batches on the device, after normalisation.
        scenes: labelled scenes; None takes those that the COCO files name.
        labels: label files or folders; None looks beside the scenes.
        unlabelled: further scenes, for background only.
        bands: 1-based band numbers in the order B, G, R, NIR.
        band_names: names in that order; None for the usual ones.
        alpha: what a band tagged alpha is.
        aoi: area of interest, see `open_scenes`.
        aliases: class name as written -> class name to use.
        class_field: attribute that holds the class in vector labels.
        default_class: class of vector labels that have none.
        classes: train on these only; None for all.
        holdout_classes: never trained on, validated as what a search for something new meets; None for none.
        min_boxes: classes with fewer boxes are left out.
        background: background chips per labelled chip; 0 for none.
        dilation: see `sample_background`.
        min_valid: least valid fraction of a background chip.
        val_fraction: part of each class (or of the scenes) that validates.
        split: ``chip`` or ``scene``, see `split_chips`.
        max_blocks: see `estimate`.
        seed: of background, split and batches.
        cache_dir: where chips are kept; None for nowhere.

    After `setup`: ``radiometry``, ``classes`` (trained, background last), ``held_out`` (their numbers follow),
    ``train_chips``, ``val_chips``.
    """

    def __init__(
        self,
        sampler: Callable[..., PKSampler],
        chip: ChipSpec,
        augment: Augment,
        scenes: Paths | None = None,
        labels: Paths | None = None,
        unlabelled: Paths | None = None,
        bands: Sequence[int] = (1, 2, 3, 4),
        band_names: Sequence[str] | None = None,
        alpha: AlphaRule = "auto",
        aoi: Aoi = None,
        aliases: Mapping[str, str] | None = None,
        class_field: str | None = None,
        default_class: str | None = None,
        classes: Sequence[str] | None = None,
        min_boxes: int = 2,
        background: float = 1.0,
        dilation: float = 0.2,
        min_valid: float = 0.5,
        val_fraction: float = 0.2,
        split: Literal["chip", "scene"] = "chip",
        max_blocks: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        holdout_classes: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction={val_fraction} must lie between 0 and 1.")
        if split not in ("chip", "scene"):
            raise InputError(f"data.split={split!r} is neither chip nor scene.")
        self.sampler, self.chip, self.augment = sampler, chip, augment
        self.scenes, self.labels, self.unlabelled = scenes, labels, unlabelled
        self.bands, self.band_names, self.alpha, self.aoi = list(bands), band_names, alpha, aoi
        self.reader = LabelReader(dict(aliases or {}), class_field, default_class)
        self.wanted, self.min_boxes = classes, min_boxes
        held = [holdout_classes] if isinstance(holdout_classes, str) else holdout_classes or ()
        self.held_out = tuple(sorted(set(map(str, held))))
        self.background, self.dilation, self.min_valid = background, dilation, min_valid
        self.val_fraction, self.split, self.max_blocks = val_fraction, split, max_blocks
        self.seed, self.cache = seed, Path(cache_dir) if cache_dir else None
        self.radiometry: Radiometry | None = None
        self.classes: tuple[str, ...] = ()
        self.opened: list[Scene] = []
        self._served = (-1, 0)

    def setup(self, stage: str | None = None) -> None:
        """Reads labels and statistics and cuts the chips; a second call does nothing."""
        if self.radiometry is not None:
            return
        band_names(len(self.bands), self.band_names)  # fails before the long part
        scenes = open_scenes(self.scenes, self.bands, self.alpha, self.aoi, self.labels)
        labelled = self.reader.read(scenes, self.labels)
        labels = self._enough(labelled)
        known = {s.path for s in scenes}
        further = open_scenes(self.unlabelled, self.bands, self.alpha) if self.unlabelled else []
        further = [s for s in further if s.path not in known]
        self.opened = [*scenes, *further]
        radiometry = estimate([*scenes, *further], self.band_names, max_blocks=self.max_blocks)
        log.info("Radiometry of %d scene(s): %s.", len(scenes) + len(further), radiometry)
        names = sorted(set(labels.class_name) - {BACKGROUND, *self.held_out})
        empty = sample_background(
            [*scenes, *further],
            labels,
            round(self.background * len(labels)),
            spec=self.chip,
            avoid=pd.concat([labelled, self.reader.reaching]) if len(self.reader.reaching) else labelled,
            dilation=self.dilation,
            min_valid=self.min_valid,
            seed=self.seed,
        )
        if not empty.empty or BACKGROUND in set(labels.class_name):
            names.append(BACKGROUND)
        every = pd.concat([labels, empty], ignore_index=True) if not empty.empty else labels
        chips = cut_chips([*scenes, *further], every, [*names, *self.held_out], self.chip, radiometry, self.cache)
        train, val = split_chips(chips, len(names), self.val_fraction, self.split, self.seed)
        self.train_chips, self.val_chips = chips.subset(train), chips.subset(val)
        self.radiometry, self.classes = radiometry, tuple(names)
        counts = every.class_name.value_counts()
        log.info("Chips: %s.", ", ".join(f"{name} {counts[name]}" for name in names))
        if self.held_out:
            shown = torch.bincount(self.val_chips.labels, minlength=len(chips.classes))[len(names) :].tolist()
            held = ", ".join(f"{name} {n}" for name, n in zip(self.held_out, shown, strict=True))
            log.info("Never trained on, in validation only: %s.", held)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """P x K batches: chips ``[P*K, C, S, S]`` in raster units and class numbers ``[P*K]``."""
        sampler = self.sampler(
            labels=self.train_chips.labels.tolist(), background=self.train_chips.background, seed=self.seed
        )
        self._served = (-1, 0)  # a new pass: another training of the same chips augments them alike
        # The chips lie in memory and a batch is one indexing: worker processes would only copy it.
        return DataLoader(self.train_chips, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """All validation chips in order, 256 a batch.

        Of R processes rank r has the chips r, r + R, ...; all as many: where they do not come out even the last chip
        stands for those that are missing, and whoever gathers them leaves it out again.
        """
        (rank, count), total = ranks(), len(self.val_chips)
        mine = torch.arange(rank, math.ceil(total / count) * count, count).clamp(max=total - 1)
        return DataLoader(self.val_chips, sampler=[p.tolist() for p in mine.split(256)], batch_size=None)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Normalises, and augments in training, on the device."""
        pixels, labels = batch
        assert self.radiometry is not None
        pixels = self.radiometry.normalise(pixels)
        if self.trainer is not None and self.trainer.training:
            pixels = self.augment(pixels, self._generator(pixels.device))
        return pixels, labels

    def _generator(self, device: torch.device) -> torch.Generator:
        """A fresh generator per batch of an epoch: a resumed run augments as the uninterrupted one would."""
        epoch, rank = (self.trainer.current_epoch, self.trainer.global_rank) if self.trainer else (0, 0)
        self._served = (epoch, self._served[1] + 1 if self._served[0] == epoch else 0)
        seed = np.random.SeedSequence([self.seed, epoch, self._served[1], rank]).generate_state(1, np.uint64)[0]
        return torch.Generator(device=device).manual_seed(int(seed >> 1))

    def _enough(self, labels: pd.DataFrame) -> pd.DataFrame:
        there = set(labels.class_name)
        for setting, named in (("classes", self.wanted or ()), ("holdout_classes", self.held_out)):
            missing = sorted(set(named) - there)
            if missing:
                raise InputError(
                    f"data.{setting} names {missing[0]!r}, which no label has; there are "
                    f"{', '.join(sorted(there)) or 'none'}."
                )
        if BACKGROUND in self.held_out:
            raise InputError("data.holdout_classes names background, which is always trained.")
        if self.wanted is not None:
            labels = labels[labels.class_name.isin([*self.wanted, *self.held_out])]
        counts = labels.class_name.value_counts()
        few = counts[(counts < self.min_boxes) & ~counts.index.isin(self.held_out)]
        if len(few):
            log.warning(
                "Labels left out: %d of classes with fewer than %d boxes (%s).",
                few.sum(), self.min_boxes, ", ".join(map(str, few.index)),
            )  # fmt: skip
            labels = labels[~labels.class_name.isin(few.index)]
        if labels.empty:
            raise InputError(
                f"No usable label for the scenes in {self.scenes or self.labels}; set data.labels to the label "
                f"files, or put <scene>.json, .geojson, .gpkg or .shp beside each scene."
            )
        if not set(labels.class_name) - {BACKGROUND, *self.held_out}:
            raise InputError("data.holdout_classes leaves no class to train on; hold out fewer.")
        return labels.reset_index(drop=True)
