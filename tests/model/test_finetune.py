from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, open_dict
from torch import Tensor

from siamese_sat import training
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import load_model
from siamese_sat.model.finetune import TwoPhaseFinetune
from siamese_sat.training import TrainingResult
from tests.model.conftest import ROOT, config, resnet_tiny, settings

QUIET = ("logger.tensorboard=null", "data.background=0.5")


class Witness(Callback):
    """Notes weights, learning rates and what may learn, at every epoch's start and end."""

    seen: list[dict[str, Any]]

    def __init__(self) -> None:
        self.seen = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        after = {k: v.clone() for k, v in pl_module.state_dict().items()}
        changed = {k.removeprefix("embedder.") for k, v in after.items() if not torch.equal(v, self.before[k])}
        self.before = after
        self.seen.append(
            {
                "epoch": trainer.current_epoch,
                "changed": changed,
                "lr": {g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups},
                "trainable": {n for n, p in pl_module.named_parameters() if p.requires_grad},
            }
        )


def run(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainingResult, list[dict[str, Any]]]:
    """A real training with a witness."""
    witness = Witness()
    with monkeypatch.context() as patch, open_dict(cfg):
        real = training.instantiate

        def instantiate(node: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if "callbacks" in kwargs:
                kwargs["callbacks"] = [*kwargs["callbacks"], witness]
            return real(node, *args, **kwargs)

        patch.setattr(training, "instantiate", instantiate)
        # What follows the last epoch is not what these tests are about, and takes longest.
        patch.setattr(training, "_draw", lambda *a: None)
        patch.setattr(training, "complete_checkpoint", lambda *a: None)
        return training.train(cfg), witness.seen


def load(folder: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def equal(one: Any, two: Any) -> bool:  # noqa: ANN401
    """Whether two nests of dicts, lists, tensors and values are alike to the bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(v, two[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


@pytest.fixture(scope="module")
def whole(
    labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainingResult, list[dict[str, Any]]]:
    """2 + 2 epochs without an interruption."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return out, *run(config(labelled, out, *QUIET), patch)


def part(name: str) -> str:
    return name.split(".")[1] if name.startswith("backbone.") else name.split(".")[0]


def test_phase_1_trains_projection_and_head_phase_2_layer4_too(
    whole: tuple[Path, TrainingResult, list[dict[str, Any]]],
) -> None:
    _, _, seen = whole
    assert [s["epoch"] for s in seen] == [0, 1, 2, 3]
    for s in seen:
        expected = {"projection", "head"} if s["epoch"] < 2 else {"projection", "head", "layer4"}
        assert {part(k) for k in s["changed"]} == expected
        assert {part(k.removeprefix("embedder.")) for k in s["trainable"]} == expected
    assert {"projection.0.weight", "head.0.weight", "head.1.running_mean", "head.3.bias"} <= seen[0]["changed"]
    assert {
        "backbone.layer4.0.conv1.weight", "backbone.layer4.0.bn1.weight", "backbone.layer4.0.bn1.running_mean"
    } <= seen[2]["changed"]  # fmt: skip


def test_the_backbone_learns_at_a_tenth(whole: tuple[Path, TrainingResult, list[dict[str, Any]]]) -> None:
    _, _, seen = whole
    for s in seen:
        assert s["lr"] == pytest.approx({"head": 1e-3, "backbone": 1e-4})


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_resumed_run_ends_as_the_uninterrupted_one(
    killed_after: int,
    whole: tuple[Path, TrainingResult, list[dict[str, Any]]],
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, result, seen = whole
    first, second = tmp_path / "first", tmp_path / "second"
    run(config(labelled, first, *QUIET, f"trainer.max_epochs={killed_after}"), monkeypatch)
    assert load(first)["epoch"] == killed_after - 1
    ckpt = f"ckpt_path={first}/checkpoints/last.ckpt"
    resumed, later = run(config(labelled, second, *QUIET, ckpt), monkeypatch)
    assert [s["epoch"] for s in later] == list(range(killed_after, 4)), "epochs are neither repeated nor left out"
    assert [s["trainable"] for s in later] == [s["trainable"] for s in seen[killed_after:]]
    assert [s["lr"] for s in later] == [s["lr"] for s in seen[killed_after:]]
    for name in ("last", "best"):
        one, two = load(folder, name), load(second, name)
        assert one["epoch"] == two["epoch"], name
        assert equal(one["state_dict"], two["state_dict"]), name
        assert equal(one["optimizer_states"], two["optimizer_states"]), name
    assert resumed.metrics["best"] == result.metrics["best"]
    assert resumed.checkpoint == second / "checkpoints" / "best.ckpt"


def test_last_is_the_last_epoch_even_if_it_was_no_better(
    whole: tuple[Path, TrainingResult, list[dict[str, Any]]],
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of two metrics, one has its best epoch before the last.
    folder, _, _ = whole
    run(config(labelled, tmp_path, *QUIET, "monitor.metric=val/recall_at_1", "monitor.mode=max"), monkeypatch)
    assert load(folder)["epoch"] == load(tmp_path)["epoch"] == 3
    assert min(load(folder, "best")["epoch"], load(tmp_path, "best")["epoch"]) < 3


def test_early_stopping_counts_on_after_a_resume(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # min_delta 1000: no epoch counts as better than the first, so that patience 2 stops after the third.
    stop = ("callbacks.early_stopping.patience=2", "+callbacks.early_stopping.min_delta=1000")
    run(config(labelled, tmp_path / "a", *QUIET, *stop, "trainer.max_epochs=2"), monkeypatch)
    ckpt = f"ckpt_path={tmp_path}/a/checkpoints/last.ckpt"
    _, seen = run(config(labelled, tmp_path / "b", *QUIET, *stop, "trainer.max_epochs=9", ckpt), monkeypatch)
    assert [s["epoch"] for s in seen] == [2]


def test_without_phase_1_all_named_stages_learn_at_once(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "callbacks.finetune.warmup_epochs=0",
        "callbacks.finetune.stages=[stem,layer3]",
        "callbacks.finetune.lr_factor=0.5",
        "trainer.max_epochs=1",
    )
    _, seen = run(config(labelled, tmp_path, *QUIET, *options), monkeypatch)
    assert {part(k) for k in seen[0]["changed"]} == {"projection", "head", "stem", "layer3"}
    assert seen[0]["lr"] == pytest.approx({"head": 1e-3, "backbone": 5e-4})


@pytest.mark.parametrize(
    ("batchnorm", "given", "kept"),
    [("frozen", False, True), ("auto", False, False), ("auto", True, True), ("trained", True, False)],
)
def test_statistics_of_the_trained_stages_stay_where_they_are_worth_it(
    batchnorm: str, given: bool, kept: bool, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(resnet_tiny().state_dict(), tmp_path / "w.pth")
    options = [f"callbacks.finetune.batchnorm={batchnorm}", "callbacks.finetune.warmup_epochs=1"]
    options += [f"model.weights={tmp_path / 'w.pth'}"] if given else []
    _, seen = run(config(labelled, tmp_path, *QUIET, "trainer.max_epochs=2", *options), monkeypatch)
    assert {part(k) for k in seen[1]["changed"]} == {"projection", "head", "layer4"}
    layer4 = {k.rsplit(".", 1)[1] for k in seen[1]["changed"] if part(k) == "layer4"}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert layer4 == {"weight", "bias"} | (set() if kept else statistics)
    assert "backbone.layer4.0.bn1.weight" in seen[1]["changed"]


def test_a_resumed_run_keeps_statistics_as_it_began_whatever_weights_it_is_given(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(resnet_tiny().state_dict(), tmp_path / "w.pth")
    options = (*QUIET, "callbacks.finetune.warmup_epochs=0")
    given, ckpt = f"model.weights={tmp_path / 'w.pth'}", "ckpt_path={}/checkpoints/last.ckpt"
    for first, second, kept in ((given, "model.weights=null", True), ("model.weights=null", given, False)):
        begun = tmp_path / f"kept_{kept}"
        run(config(labelled, begun, *options, "trainer.max_epochs=1", first), monkeypatch)
        on = ckpt.format(begun)
        _, seen = run(
            config(labelled, tmp_path / f"on_{kept}", *options, on, "trainer.max_epochs=2", second), monkeypatch
        )
        assert ("backbone.layer4.0.bn1.running_mean" not in seen[0]["changed"]) == kept
        assert "backbone.layer4.0.bn1.weight" in seen[0]["changed"]
    # What is said outright counts.
    on, outright = ckpt.format(tmp_path / "kept_True"), "callbacks.finetune.batchnorm=trained"
    _, seen = run(config(labelled, tmp_path / "said", *options, on, outright, "trainer.max_epochs=2"), monkeypatch)
    assert "backbone.layer4.0.bn1.running_mean" in seen[0]["changed"]


def test_points_of_a_loss_learn_and_are_taken_up_again(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = (*QUIET, "loss=proxy_anchor", "loss.lr_factor=7")
    _, seen = run(config(labelled, tmp_path / "whole", *loss), monkeypatch)
    assert all("loss.proxies" in s["changed"] for s in seen)
    assert seen[0]["lr"] == pytest.approx({"head": 1e-3, "backbone": 1e-4, "loss": 7e-3})
    run(config(labelled, tmp_path / "cut", *loss, "trainer.max_epochs=2"), monkeypatch)
    ckpt = f"ckpt_path={tmp_path}/cut/checkpoints/last.ckpt"
    run(config(labelled, tmp_path / "on", *loss, ckpt), monkeypatch)
    one, two = load(tmp_path / "whole"), load(tmp_path / "on")
    assert one["state_dict"]["loss.proxies"].shape == (4, 16)  # three classes and background
    assert equal(one["state_dict"], two["state_dict"])
    assert equal(one["optimizer_states"], two["optimizer_states"])
    load_model(tmp_path / "on" / "checkpoints" / "last.ckpt")


def test_impossible_phases_are_refused_at_once() -> None:
    for options in ({"warmup_epochs": -1}, {"lr_factor": 0.0}):
        with pytest.raises(InputError, match=r"callbacks\.finetune"):
            TwoPhaseFinetune(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"callbacks\.finetune\.batchnorm='on' is neither auto, trained nor"):
        TwoPhaseFinetune(batchnorm="on")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'conv5' is no stage; there are stem, layer1"):
        TwoPhaseFinetune(stages=["layer4", "conv5"])


@pytest.mark.slow
def test_a_killed_process_resumed_ends_as_the_uninterrupted_one(labelled: Path, tmp_path: Path) -> None:
    def command(out: Path, *more: str) -> list[str]:
        options = settings(labelled, out, tmp_path / "cache", *QUIET, "model.backbone=resnet18", f"hydra.run.dir={out}")
        return [sys.executable, str(ROOT / "train.py"), *options, "trainer.max_epochs=5", *more]

    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command(tmp_path / "whole"), check=True, **quiet)  # type: ignore[call-overload]
    for phase, epochs in ((1, 1), (2, 3)):
        cut, on = tmp_path / f"cut{phase}", tmp_path / f"on{phase}"
        log = cut / "checkpoints" / "last.ckpt"
        process = subprocess.Popen(command(cut), **quiet)  # type: ignore[call-overload]
        deadline, written = time.monotonic() + 120, 0.0
        saves = 0
        while saves < epochs and process.poll() is None and time.monotonic() < deadline:
            if log.is_file() and log.stat().st_mtime != written:
                written, saves = log.stat().st_mtime, saves + 1
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert epochs - 1 <= load(cut)["epoch"] < 4
        subprocess.run(command(on, f"ckpt_path={log}"), check=True, **quiet)  # type: ignore[call-overload]
        for name in ("last", "best"):
            one, two = load(tmp_path / "whole", name), load(on, name)
            assert one["epoch"] == two["epoch"]
            assert equal(one["state_dict"], two["state_dict"])
            assert equal(one["optimizer_states"], two["optimizer_states"])
