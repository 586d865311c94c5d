from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from siamese_sat.data import datamodule
from siamese_sat.data.augment import Augment
from siamese_sat.data.chip import BACKGROUND, ChipSpec
from siamese_sat.data.datamodule import ChipDataModule, open_scenes
from siamese_sat.data.sampler import PKSampler
from siamese_sat.errors import InputError
from tests.conftest import ramp, write_scene

SIZE = 120
NAMES = ["ship"] * 4 + ["tank"] * 6 + ["rare"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scenes a, b and c with four ships and six tanks each, 8 x 8 pixels; a has one box of class rare too."""
    for n, name in enumerate("abc"):
        pixels = (ramp(4, SIZE, SIZE) // 4).astype("uint16") + np.uint16(n)
        write_scene(tmp_path / f"{name}.tif", pixels)
        features = []
        for i, kind in enumerate(NAMES if name == "a" else NAMES[:10]):
            x, y = 6 + 28 * (i % 4), 6 + 28 * (i // 4)
            ring = [[x, y], [x + 8, y], [x + 8, y + 8], [x, y + 8], [x, y]]
            geometry = {"type": "MultiPolygon", "coordinates": [[ring]]}
            features.append({"type": "Feature", "properties": {"Class Name": kind}, "geometry": geometry})
        content = {"type": "FeatureCollection", "features": features}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def module(scenes: Path | str | list[str] | None, **options: Any) -> ChipDataModule:  # noqa: ANN401
    options = {"sampler": partial(PKSampler, classes_per_batch=3, chips_per_class=2)} | options
    options = {"chip": ChipSpec(8), "augment": Augment()} | options
    data = ChipDataModule(scenes=str(scenes) if isinstance(scenes, Path) else scenes, **options)
    data.setup()
    return data


def places(data: ChipDataModule, side: str) -> set[tuple[object, ...]]:
    chips = getattr(data, f"{side}_chips")
    return {(s, *b) for s, b in zip(chips.scenes, chips.boxes.tolist(), strict=True)}


def counts(data: ChipDataModule, side: str) -> dict[str, int]:
    return Counter(data.classes[i] for i in getattr(data, f"{side}_chips").labels.tolist())


def test_the_split_is_stratified(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(folder)
    assert data.classes == ("ship", "tank", BACKGROUND)
    assert counts(data, "val") == {"ship": 2, "tank": 4, BACKGROUND: 6}  # a fifth of 12, 18 and 30
    assert counts(data, "train") == {"ship": 10, "tank": 14, BACKGROUND: 24}
    assert not places(data, "train") & places(data, "val")
    assert "Labels left out: 1 of classes with fewer than 2 boxes (rare)." in caplog.text


@pytest.mark.parametrize(("fraction", "held"), [(0.01, {"ship": 1}), (0.9, {"ship": 1}), (0.5, {"ship": 1})])
def test_each_class_is_on_both_sides(folder: Path, fraction: float, held: dict[str, int]) -> None:
    window = [6, 0, 44, 20]  # two ships
    data = module(folder / "a.tif", aoi=window, background=0, val_fraction=fraction)
    assert (counts(data, "train"), counts(data, "val")) == ({"ship": 1}, held)
    rare = module(folder / "a.tif", min_boxes=1, background=0)
    assert counts(rare, "train")["rare"] == 1  # a single chip is trained on


@pytest.mark.parametrize("split", ["chip", "scene"])
def test_the_split_follows_the_seed(folder: Path, split: str) -> None:
    sides = [places(module(folder, split=split, seed=s, background=0), "val") for s in (0, 0, 1, 2, 3)]
    assert sides[0] == sides[1]
    assert any(side != sides[0] for side in sides[2:])


def test_a_split_by_scene_keeps_scenes_whole(folder: Path) -> None:
    data = module(folder, split="scene")
    train, val = set(data.train_chips.scenes), set(data.val_chips.scenes)
    assert not train & val
    assert (len(train), len(val)) == (2, 1)
    with pytest.raises(InputError, match="two labelled scenes"):
        module(folder / "a.tif", split="scene", unlabelled=str(folder / "b.tif"))


@pytest.mark.parametrize("seed", range(4))
def test_a_split_by_scene_validates_on_objects(folder: Path, seed: int) -> None:
    bare = [write_scene(folder / "bare" / f"{i}.tif", ramp(4, SIZE, SIZE)) for i in range(3)]
    data = module([str(folder / "a.tif"), str(folder / "b.tif")], split="scene", unlabelled=bare, seed=seed)
    for side in ("train", "val"):
        assert counts(data, side)["ship"] == 4
    assert set(bare) & set(data.train_chips.scenes)


def test_what_is_left_out_of_training_is_not_background(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(folder / "a.tif", classes=["tank"])
    assert data.classes == ("tank", BACKGROUND)
    boxes = [p[1:] for side in ("train", "val") for p in places(data, side)]
    ships = [(6 + 28 * i, 6, 14 + 28 * i, 14) for i in range(4)]
    for x0, y0, x1, y1 in boxes:
        assert all(x1 <= s[0] or x0 >= s[2] or y1 <= s[1] or y0 >= s[3] for s in ships)
    given: dict[str, Any] = {}
    original = datamodule.sample_background
    monkeypatch.setattr(datamodule, "sample_background", lambda *a, **k: given.update(k) or original(*a, **k))
    module(folder / "a.tif", classes=["tank"], chip=ChipSpec(8, 0.4), dilation=0.5)
    assert sorted(given["avoid"].class_name) == sorted(NAMES)
    assert (given["spec"], given["dilation"]) == (ChipSpec(8, 0.4), 0.5)


def test_background_comes_from_unlabelled_scenes_too(folder: Path) -> None:
    bare = write_scene(folder / "bare" / "z.tif", ramp(4, 300, 300))
    data = module(folder, unlabelled=bare, background=2.0)
    names = [data.classes[i] for i in [*data.train_chips.labels.tolist(), *data.val_chips.labels.tolist()]]
    homes = [*data.train_chips.scenes, *data.val_chips.scenes]
    assert Counter(names)[BACKGROUND] == 60
    assert {n for n, s in zip(names, homes, strict=True) if s == bare} == {BACKGROUND}


def test_the_area_of_interest_holds_labels_and_background(folder: Path) -> None:
    data = module(folder, aoi=[0, 0, 60, SIZE])
    boxes = np.array([p[1:] for side in ("train", "val") for p in places(data, side)], dtype=float)
    assert boxes[:, 2].max() <= 60
    assert counts(data, "train")["ship"] + counts(data, "val")["ship"] == 6  # two of four columns, three scenes
    named = open_scenes(str(folder), [1, 2, 3, 4], aoi={"a": [0, 0, 10, 10], "b.tif": [5, 5, 9, 9]})
    assert [s.aoi for s in named] == [(0, 0, 10, 10), (5, 5, 9, 9), (0, 0, SIZE, SIZE)]
    with pytest.raises(InputError, match="'z'"):
        open_scenes(str(folder), [1], aoi={"z": [0, 0, 1, 1]})


def with_trainer(data: ChipDataModule, training: bool = True) -> SimpleNamespace:
    data.trainer = SimpleNamespace(current_epoch=0, global_rank=0, training=training)  # type: ignore[assignment]
    return data.trainer  # type: ignore[return-value]


def test_batches_are_normalised_and_augmented_in_training_alone(folder: Path) -> None:
    data = module(folder, augment=Augment(False, 0, 0, 0.1))
    assert data.radiometry is not None
    assert data.radiometry.scale == 10_000
    pixels, labels = next(iter(data.val_dataloader()))
    assert labels.tolist() == data.val_chips.labels.tolist()
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.radiometry.mean, data.radiometry.std))
    # Hand-computed: band 1 is 2500 + a ramp of 0 to 3004 evenly over rows and columns.
    assert 1e4 * mean[0].item() == pytest.approx(2500 + 25 * 59.5 + 59.5 / 4 + 1, abs=1)
    expected = (pixels / 10_000 - mean) / std
    with_trainer(data, training=False)
    got = data.on_after_batch_transfer((pixels, labels), 0)[0]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    with_trainer(data)
    noisy = data.on_after_batch_transfer((pixels, labels), 0)[0]
    assert (noisy - expected).std().item() == pytest.approx(0.1, rel=0.1)


def test_a_resumed_epoch_augments_as_an_uninterrupted_one(folder: Path) -> None:
    batch = (torch.rand(6, 4, 8, 8) * 5000, torch.zeros(6))

    def epoch(data: ChipDataModule, trainer: SimpleNamespace, number: int) -> list[torch.Tensor]:
        trainer.current_epoch = number
        return [data.on_after_batch_transfer(batch, 0)[0] for _ in range(3)]

    one, other, second_rank = module(folder), module(folder), module(folder)
    trainer = with_trainer(one)
    first, second = epoch(one, trainer, 0), epoch(one, trainer, 1)
    resumed = epoch(other, with_trainer(other), 1)
    elsewhere = with_trainer(second_rank)
    elsewhere.global_rank = 1
    for a, b in zip(second, resumed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    one.train_dataloader()
    for a, b in zip(second, epoch(one, one.trainer, 1), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(epoch(second_rank, elsewhere, 0)[0], first[0])


def test_training_batches_come_from_the_sampler(folder: Path) -> None:
    data = module(folder)
    loader = data.train_dataloader()
    for pixels, labels in loader:
        assert pixels.shape == (6, 4, 8, 8)
        assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(loader) == 8  # 48 chips, six a batch
    assert isinstance(loader.sampler, PKSampler)
    assert loader.sampler.background == 2


@pytest.mark.parametrize("split", ["chip", "scene"])
def test_held_out_classes_are_validated_and_never_trained_on(folder: Path, split: str) -> None:
    data = module(folder, holdout_classes=["ship"], split=split)
    assert data.classes == ("tank", BACKGROUND)
    assert data.held_out == ("ship",)
    ships = {(str(folder / f"{n}.tif"), 6 + 28 * i, 6, 14 + 28 * i, 14) for n in "abc" for i in range(4)}
    shown = places(data, "val") & ships
    assert shown == {s for s in ships if split == "chip" or s[0] in data.val_chips.scenes}
    assert len(shown) == (12 if split == "chip" else 4)
    assert data.val_chips.labels.tolist().count(2) == len(shown), "numbered after the trained classes and background"
    assert not places(data, "train") & ships
    for _, *box in places(data, "train"):  # nor is one within a background chip
        assert not any((box[0] < s[3]) & (box[2] > s[1]) & (box[1] < s[4]) & (box[3] > s[2]) for s in ships)
    batches = [(pixels, labels) for _ in range(5) for pixels, labels in data.train_dataloader()]
    assert {int(i) for _, labels in batches for i in labels} == {0, 1}
    # By content too: a chip of a ship is unlike any chip of a tank and of the background.
    drawn = torch.cat([pixels for pixels, _ in batches])
    ship = data.val_chips.pixels[data.val_chips.labels == 2]
    assert not (drawn[:, None] == ship[None]).flatten(2).all(2).any()
    assert data.val_chips.background == data.train_chips.background == 1


def test_a_scene_of_held_out_things_alone_validates(folder: Path) -> None:
    content = json.loads((folder / "c.json").read_text())
    content["features"] = [f for f in content["features"] if f["properties"]["Class Name"] == "ship"]
    (folder / "c.json").write_text(json.dumps(content))
    for seed in range(4):
        data = module(folder, holdout_classes="ship", split="scene", seed=seed)
        assert str(folder / "c.tif") not in data.train_chips.scenes
        assert [c.labels.tolist().count(0) for c in (data.train_chips, data.val_chips)] == [6, 6]  # tanks


def test_classes_may_leave_out_what_is_held_out(folder: Path) -> None:
    one = module(folder, classes=["tank"], holdout_classes=["ship"])
    two = module(folder, classes=["tank", "ship"], holdout_classes=["ship"])
    assert one.classes == two.classes == ("tank", BACKGROUND)
    assert places(one, "val") == places(two, "val")
    assert places(one, "train") == places(two, "train")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"holdout_classes": ["plane"]}, "names 'plane', which no label has; there are rare, ship, tank"),
        ({"holdout_classes": ["rare"]}, "validation has 1 chip.s. of 'rare', and needs one to show and one to find"),
        ({"holdout_classes": ["ship", "tank"]}, "leaves no class to train on"),
        ({"holdout_classes": [BACKGROUND]}, f"names '?{BACKGROUND}"),
        ({"holdout_classes": ["rare"], "split": "scene", "seed": 1}, "use data.split=chip"),
    ],
)
def test_classes_that_cannot_be_held_out(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as told:
        module(folder, **options)
    assert str(told.value).startswith("data.holdout_classes")


def test_settings_that_cannot_be(folder: Path) -> None:
    for wrong in ({"val_fraction": 1.0}, {"split": "year"}, {"classes": ["plane"]}, {"band_names": ["B"]}):
        with pytest.raises(InputError):
            module(folder, **wrong)
    with pytest.raises(InputError, match=r"data\.scenes"):
        module(None)
    (folder / "a.json").unlink()
    with pytest.raises(InputError, match=r"data\.labels"):
        module(folder / "a.tif")
