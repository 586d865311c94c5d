from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from matplotlib.image import imread
from omegaconf import OmegaConf

from siamese_sat import device
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.device import pick_device, pick_precision, training_precision
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import load_model
from siamese_sat.settings import CHOICES, REAL, WHOLE, check_training
from siamese_sat.training import TrainingResult, monitored, train
from tests.model.conftest import CLASSES, ROOT, config, make_labelled, one_thread

__all__ = ["one_thread"]  # a fixture of every test here
EXPERIMENTS = sorted(f.stem for f in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("training") / "scenes")


@pytest.fixture(scope="module")
def result(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A finished training of all pairs, which learns in a few steps."""
    return train(config(scenes, tmp_path_factory.mktemp("run"), "loss=supcon", "trainer.max_epochs=3"))


def test_it_leaves_a_complete_checkpoint(result: TrainingResult) -> None:
    assert result.checkpoint == result.folder / "checkpoints" / "best.ckpt"
    model = load_model(result.checkpoint)
    assert model.classes == (*CLASSES, "background")
    assert model.bands == (1, 2, 3, 4)
    assert model.chip.size == 32
    assert model.calibration.kind == "logistic"  # 3 classes x 5 validation chips: 30 pairs
    assert model.calibration.slope > 0
    assert set(model.prototypes) == set(CLASSES), "background is nothing to search for"
    for prototype in model.prototypes.values():
        assert prototype.shape == (16,)
        assert float(prototype.norm()) == pytest.approx(1, abs=1e-5)
    assert set(model.thresholds) == {*CLASSES, "background"}
    assert all(0 <= t <= 1 for t in model.thresholds.values())
    for stage, cells in (("layer2", 100), ("layer3", 20)):
        ordinary = model.background[stage]
        assert ordinary.count > cells
        assert ordinary.covariance.shape == (len(ordinary.mean),) * 2
        assert float(ordinary.covariance.diagonal().sum() + ordinary.mean.square().sum()) == pytest.approx(1, abs=1e-4)
    content = torch.load(result.checkpoint, weights_only=True)
    assert content["siamese_sat"]["radiometry"] == json.loads((result.folder / "radiometry.json").read_text())


def test_prototypes_and_extents_are_of_the_training_chips(result: TrainingResult, scenes: Path) -> None:
    model = load_model(result.checkpoint)
    cfg = config(scenes, result.folder)
    data = instantiate(cfg.data, sampler=instantiate(cfg.sampler))
    data.setup()
    chips = data.train_chips
    for number, name in enumerate(CLASSES):
        mine = chips.labels == number
        with torch.inference_mode():
            mean = model.embedder(model.radiometry.normalise(chips.pixels[mine])).mean(0)
        torch.testing.assert_close(model.prototypes[name], mean / mean.norm(), atol=1e-4, rtol=1e-3)
        boxes = chips.boxes[mine.numpy()]
        sides = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        assert model.extents[name] == pytest.approx(tuple(float(np.median(s)) for s in sides))


def test_it_leaves_what_a_person_wants_to_see(result: TrainingResult) -> None:
    for name in ("curves.png", "chips.png", "similarity.png"):
        picture = imread(result.folder / name)
        assert min(picture.shape[:2]) > 60, name
        assert picture[..., :3].std() > 0.02, f"{name} is blank"
    radiometry = Radiometry.from_dict(json.loads((result.folder / "radiometry.json").read_text()))
    assert radiometry.names == ("B", "G", "R", "NIR")
    assert radiometry.scale == 10000
    saved = OmegaConf.load(result.folder / "csv" / "hparams.yaml")
    assert OmegaConf.select(saved, "trainer.max_epochs") == 3
    assert list((result.folder / "tensorboard").glob("events.*"))


def test_it_logs_every_epoch(result: TrainingResult) -> None:
    log = pd.read_csv(result.folder / "csv" / "metrics.csv")
    for name in ("val/loss", "val/recall_at_1", "val/map_at_r", "val/prototype_accuracy", "train/loss"):
        values = log[name].dropna()
        assert len(values) == 3, name
        assert values.map(math.isfinite).all(), name
        assert result.metrics[name] == pytest.approx(values.iloc[-1], abs=1e-5)
    for name in ("val/recall_at_1", "val/map_at_r", "val/prototype_accuracy"):
        assert log[name].dropna().between(0, 1).all()
    assert result.metrics["best"] == pytest.approx(log["val/loss"].min(), abs=1e-5)
    best = torch.load(result.checkpoint, weights_only=True)["epoch"]
    assert best == int(log.loc[log["val/loss"].idxmin(), "epoch"])


def test_monitored_gives_the_figure_or_says_what_there_is(result: TrainingResult) -> None:
    assert monitored(result, "best") == result.metrics["best"]
    assert monitored(result, "val/map_at_r") == result.metrics["val/map_at_r"]
    with pytest.raises(InputError, match="optimized_metric='nope' was not logged; there are best"):
        monitored(result, "nope")
    with pytest.raises(InputError, match="was not logged"):
        monitored(replace(result, metrics={"best": math.nan}), "best")


def weights(scenes: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    quick = ("trainer.max_epochs=2", "callbacks.finetune.warmup_epochs=1", "logger.tensorboard=null")
    train(config(scenes, out, *quick, *more))
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_one_seed_gives_one_result_and_another_another(scenes: Path, tmp_path: Path) -> None:
    one = weights(scenes, tmp_path / "1", "paths.cache_dir=null")
    torch.rand(7), np.random.rand(7)  # what ran before in this process must not matter
    two = weights(scenes, tmp_path / "2")
    other = weights(scenes, tmp_path / "3", "seed=1")
    assert one.keys() == two.keys()
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert not torch.equal(one["embedder.head.0.weight"], other["embedder.head.0.weight"])


def test_three_bands_go_through(scenes: Path, tmp_path: Path) -> None:
    more = ("data.bands=[3,2,1]", "data.band_names=[R,G,B]", "trainer.max_epochs=1", "logger.tensorboard=null")
    model = load_model(train(config(scenes, tmp_path, *more)).checkpoint)
    assert model.embedder.spec.band_names == ("R", "G", "B")
    assert model.bands == (3, 2, 1)
    torch.testing.assert_close(model.embedder.projection[0].weight.flatten(1), torch.eye(3), atol=0.05, rtol=0)


def test_few_validation_chips_warn_and_score_by_cosine(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = ("data.val_fraction=0.1", "trainer.max_epochs=1", "logger.tensorboard=null")
    with caplog.at_level(logging.WARNING):
        result = train(config(scenes, tmp_path, *more))
    assert load_model(result.checkpoint).calibration.kind == "linear"
    assert "Calibration needs 20 validation pairs" in caplog.text


def test_best_may_be_what_finds_a_class_never_trained_on(scenes: Path, tmp_path: Path) -> None:
    held = CLASSES[1]
    more = ("monitor.metric=val/novel_ap", "monitor.mode=max", "optimized_metric=val/novel_ap", "loss=supcon")
    cfg = config(scenes, tmp_path, f"data.holdout_classes=[{held}]", *more, "logger.tensorboard=null")
    result = train(cfg)
    log = pd.read_csv(tmp_path / "csv" / "metrics.csv")
    for name in ("val/novel_ap", "val/novel_recall_at_1"):
        assert len(log[name].dropna()) == 4
        assert log[name].dropna().between(0, 1).all()
    assert result.metrics["best"] == pytest.approx(log["val/novel_ap"].max(), abs=1e-5)
    best = torch.load(result.checkpoint, weights_only=True)["epoch"]
    assert best == int(log.loc[log["val/novel_ap"].idxmax(), "epoch"])
    assert monitored(result, "val/novel_ap") == pytest.approx(log["val/novel_ap"].dropna().iloc[-1], abs=1e-5)
    model = load_model(result.checkpoint)
    trained = {c for c in CLASSES if c != held}
    assert set(model.classes) == set(model.thresholds) == set(model.extents) == {*trained, "background"}
    assert set(model.prototypes) == trained, "what was held out is searched by exemplars"


@pytest.mark.parametrize("setting", ["monitor.metric", "callbacks.checkpoint.monitor", "optimized_metric"])
def test_figures_of_held_out_classes_need_some(setting: str, scenes: Path, tmp_path: Path) -> None:
    chosen = {"monitor.metric": "val/map_at_r", "monitor.mode": "max", setting: "val/novel_ap"}
    cfg = config(scenes, tmp_path, *(f"{name}={value}" for name, value in chosen.items()))
    with pytest.raises(InputError, match=rf"{setting}=val/novel_ap needs data\.holdout_classes"):
        check_training(cfg)
    cfg.data.holdout_classes = "tennis court"
    check_training(cfg)
    cfg.data.holdout_classes = 5
    with pytest.raises(InputError, match=r"data\.holdout_classes=5 must list class names"):
        check_training(cfg)


@pytest.mark.parametrize("setting", [*WHOLE, *REAL, *CHOICES, "data.bands"])
def test_impossible_values_name_their_setting(setting: str, scenes: Path, tmp_path: Path) -> None:
    cfg = config(scenes, tmp_path)
    check_training(cfg)
    assert OmegaConf.select(cfg, setting, throw_on_missing=True) is not None, "the setting is not in conf/"
    for value in ["banana", -7, *([] if setting in REAL else [2.5])]:
        OmegaConf.update(cfg, setting, value)
        with pytest.raises(InputError, match=setting.replace(".", r"\.")):
            check_training(cfg)


def test_a_missing_checkpoint_to_resume_from_is_named(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.ckpt: no such checkpoint to resume from"):
        train(config(scenes, tmp_path, f"ckpt_path={tmp_path}/gone.ckpt"))


@pytest.mark.parametrize("setting", ["paths.output_dir", "ckpt_path"])
def test_a_training_is_on_this_machine(
    setting: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^{setting}=s3://bucket/x: training .* on this machine; copy"):
        train(config(scenes, tmp_path / "run", f"{setting}=s3://bucket/x"))
    assert not list(tmp_path.iterdir())


def test_a_run_without_an_epoch_is_said_to_be_none(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainer\.max_epochs"):
        train(config(scenes, tmp_path, "trainer.max_epochs=0", "logger.tensorboard=null"))


@pytest.mark.parametrize(
    ("asked", "accelerator", "cuda", "bf16", "given", "said"),
    [
        ("auto", "auto", True, True, "16-mixed", logging.INFO),
        ("auto", "gpu", True, False, "16-mixed", logging.INFO),
        ("auto", "auto", False, True, "bf16-mixed", logging.INFO),
        ("auto", "auto", False, False, "32-true", logging.INFO),
        ("auto", "cpu", True, True, "bf16-mixed", logging.INFO),
        ("auto", "cpu", True, False, "32-true", logging.INFO),
        ("16-mixed", "cpu", True, True, "bf16-mixed", logging.WARNING),
        ("16-mixed", "auto", False, False, "32-true", logging.WARNING),
        ("16-true", "cpu", False, False, "32-true", logging.WARNING),
        ("16", "cpu", False, False, "32-true", logging.WARNING),
        ("16-mixed", "gpu", True, False, "16-mixed", None),
        ("32", "gpu", True, True, "32", None),
        ("32-true", "cpu", False, True, "32-true", None),
        ("bf16-mixed", "cpu", False, False, "bf16-mixed", None),
    ],
)
def test_training_precision_is_what_the_machine_has_and_is_said(
    asked: str,
    accelerator: str,
    cuda: bool,
    bf16: bool,
    given: str,
    said: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: bf16)
    with caplog.at_level(logging.INFO):
        assert training_precision(asked, accelerator) == given
    assert [r.levelno for r in caplog.records] == ([] if said is None else [said])
    if said is not None:
        assert given in caplog.text
    if said == logging.WARNING:
        assert asked in caplog.text


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(InputError, match=f"device={name} is asked for, but no GPU is usable here; set device=cpu"):
            pick_device(name)
    with pytest.raises(InputError, match="device='banana' is no device"):
        pick_device("banana")


def test_inference_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "cpu_has_bf16", lambda has=has: has)
        assert pick_precision("auto", cpu) == expected
    assert pick_precision("auto", gpu) == torch.float16
    assert pick_precision("fp32", gpu) == torch.float32
    with pytest.raises(InputError, match="precision='fp8' is none of auto, fp32, bf16, fp16"):
        pick_precision("fp8", cpu)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str, tmp_path: Path) -> None:
    root = "search" if "search" in name else "train"
    more = [f"experiment={name}", f"paths.output_dir={tmp_path}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(root, more)
    OmegaConf.resolve(cfg)
    if root == "train":
        check_training(cfg)
        assert all(isinstance(instantiate(c), Callback) for c in cfg.callbacks.values())
        cfg.model.weights = None
        assert instantiate(cfg.model, band_names=["B", "G", "R", "NIR"]).spec.embedding_dim == 128
        instantiate(cfg.loss.loss)
        instantiate(cfg.sampler)(labels=[0, 0, 1, 1])


def test_the_original_is_the_original() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["experiment=original", "paths.output_dir=x"])
    assert (cfg.model.backbone, cfg.model.variant, cfg.model.projection_norm) == ("resnet50", "v1", True)
    assert (cfg.model.hidden_dim, cfg.model.embedding_dim, cfg.model.projection_init) == (512, 128, "random")
    assert (cfg.sampler.classes_per_batch, cfg.sampler.chips_per_class) == (8, 3)
    assert (cfg.data.chip.size, cfg.data.chip.padding, cfg.data.chip.shape) == (64, 0.15, "stretched")
    assert cfg.data.augment == {**cfg.data.augment, "dihedral": True, "gain": 0.0, "offset": 0.0, "noise": 0.0}
    finetune = cfg.callbacks.finetune
    assert (finetune.warmup_epochs, list(finetune.stages), finetune.lr_factor) == (5, ["layer4"], 0.1)
    assert finetune.batchnorm == "trained"
    assert (cfg.optimizer.lr, cfg.trainer.max_epochs, cfg.callbacks.early_stopping.patience) == (1e-4, 150, 10)
    loss, miner = instantiate(cfg.loss.loss), instantiate(cfg.loss.miner)
    assert (type(loss).__name__, loss.margin, loss.smooth_loss) == ("TripletMarginLoss", 0.5, True)
    assert type(miner).__name__ == "BatchHardMiner"
