from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy
from pytorch_metric_learning.losses import ProxyAnchorLoss, SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

from siamese_sat import apart
from siamese_sat.completion import embed_chips
from siamese_sat.data import datamodule
from siamese_sat.data.datamodule import ChipDataModule
from siamese_sat.distributed import end_together, is_first, leave_group, ranks
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import load_model
from siamese_sat.model.metrics import retrieval
from siamese_sat.model.module import MetricLearner
from siamese_sat.model.signs import mean_cosine
from tests.model.conftest import RADIOMETRY, ROOT, config, make_labelled, settings, tiny_embedder

BATCH, STEPS = 12, 1


class FrozenStatistics(MetricLearner):
    """Normalises by what it has: by its own batch each of two processes would differ from one with both."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        atexit.register(leave_group)  # a process that Lightning spawned ends by itself

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.eval()


class Shared:
    """The batches of a process among ``count`` that share all of them; all of a step at once where there is one."""

    def __iter__(self) -> Iterator[list[int]]:
        rank, count = ranks()
        size = BATCH * 2 // count
        for step in range(STEPS):
            first = 2 * BATCH * step + rank * size
            yield list(range(first, first + size))

    def __len__(self) -> int:
        return STEPS


def learner(loss: nn.Module, miner: nn.Module | None) -> FrozenStatistics:
    torch.manual_seed(0)
    embedder = tiny_embedder()
    embedder.set_trainable(("layer4",))
    return FrozenStatistics(
        embedder=embedder, loss=loss, miner=miner, optimizer=functools.partial(torch.optim.SGD, lr=1.0),
        radiometry=RADIOMETRY, classes=["a", "b", "c"], chip={}, bands=[1, 2, 3, 4],
    )  # fmt: skip


def chips(count: int = 2 * BATCH * STEPS) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 4, 32, 32), torch.randint(0, 3, (count,)))


def trained(module: FrozenStatistics, folder: Path, devices: int) -> tuple[dict[str, Tensor], float]:
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, max_epochs=1, logger=False, enable_checkpointing=False, barebones=False,
        strategy=DDPStrategy(start_method="spawn", find_unused_parameters=True) if devices > 1 else "auto",
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(chips(), sampler=Shared(), batch_size=None))
    return module.state_dict(), float(trainer.callback_metrics["train/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triplet", "supcon", "proxy_anchor"])
@pytest.mark.filterwarnings("ignore")
def test_two_processes_learn_as_one_with_both_batches(name: str, tmp_path: Path) -> None:
    make = {
        "triplet": lambda: (TripletMarginLoss(margin=0.5, smooth_loss=True), BatchHardMiner()),
        "supcon": lambda: (SupConLoss(), None),
        "proxy_anchor": lambda: (ProxyAnchorLoss(num_classes=3, embedding_size=16), None),
    }[name]
    modules = []
    for _ in range(2):
        torch.manual_seed(2)  # proxies begin alike
        modules.append(learner(*make()))
    before = {k: v.clone() for k, v in modules[0].state_dict().items()}
    (one, loss), (two, shown) = (trained(m, tmp_path, n) for m, n in zip(modules, (1, 2), strict=True))
    assert shown == pytest.approx(loss, abs=1e-5), "the logged loss is that of all batches, not a multiple"
    # A rate of 1 and no momentum: what a weight has moved by in the one step is its gradient.
    learned = [k for k, v in one.items() if (v - before[k]).abs().max() > 1e-4]
    assert {"embedder.projection.0.weight", "embedder.head.0.weight"} <= set(learned), "nothing would be compared"
    assert ("loss.proxies" in learned) == (name == "proxy_anchor")
    for key in one:
        torch.testing.assert_close(two[key] - before[key], one[key] - before[key], atol=1e-6, rtol=1e-3, msg=key)


DRIVER = """
import sys
import torch
sys.path.insert(0, {root!r})
import tests.model.conftest  # knows a small network
import train
from siamese_sat.errors import InputError
from siamese_sat.model.collapse import CollapseWatch

class Fails(CollapseWatch):
    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1 and trainer.global_rank == self.rank:
            raise InputError(f"rank {{self.rank}} has no more memory.")

if __name__ == "__main__":
    sys.modules["driver"] = sys.modules["__main__"]
    train.main()
    if torch.distributed.is_initialized():
        raise SystemExit("The group was not left.")
"""


def drive(place: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = place / "driver.py"
    script.write_text(DRIVER.format(root=str(ROOT)))
    kept = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, str(script), *overrides], cwd=place, capture_output=True, text=True,
        env={**kept, "OMP_NUM_THREADS": "1", **environment}, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("distributed") / "scenes")


def tiny(scenes: Path, *more: str) -> list[str]:
    """Settings of two processes; paths.output_dir is left to hydra."""
    with_out = settings(scenes, Path("unused"), scenes.parent / "cache", "trainer=ddp_cpu", "loss=supcon", *more)
    return [s for s in with_out if s != "trainer=cpu" and not s.startswith("paths.output_dir")]


@pytest.mark.slow
def test_a_training_of_two_processes_leaves_one_folder(scenes: Path, tmp_path: Path) -> None:
    done = drive(
        tmp_path,
        *tiny(
            scenes,
        ),
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "train").iterdir()
    assert {p.name for p in tmp_path.iterdir()} == {"driver.py", "outputs"}
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert [name for name in found if not name.startswith("tensorboard/events")] == [
        ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt", "chips.png", "csv/hparams.yaml", "csv/metrics.csv", "curves.png", "metrics.json",
        "radiometry.json", "similarity.png", "tensorboard/hparams.yaml", "train.log",
    ]  # fmt: skip
    assert len(list(folder.glob("tensorboard/events*"))) == 1
    said = (folder / "train.log").read_text()
    for once in ("Radiometry of", "phase 1", "phase 2", "Calibration:", "Best checkpoint"):
        assert done.stdout.count(once) == said.count(once) == 1, once
    model = load_model(folder / "checkpoints" / "best.ckpt")
    assert model.calibration.kind == "logistic"
    assert len(model.prototypes) == 3
    log = pd.read_csv(folder / "csv" / "metrics.csv")
    assert len(log["train/loss"].dropna()) == len(log["val/loss"].dropna()) == 4
    assert int(log["step"].max()) == 4 * 2 - 1, "three batches an epoch, rounded up to two of each process"
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["best"] == pytest.approx(log["val/loss"].min(), abs=1e-5)

    # Validation was of all chips, each once, an odd number of them in two shares.
    cfg = config(scenes, tmp_path)
    data: ChipDataModule = instantiate(cfg.data, sampler=instantiate(cfg.sampler))
    data.setup()
    chips = data.val_chips
    assert len(chips) % 2 == 1
    last = load_model(folder / "checkpoints" / "last.ckpt")
    embeddings = embed_chips(last.embedder, chips, last.radiometry, torch.device("cpu"))
    expected = {**retrieval(embeddings, chips.labels), "mean_cosine": float(mean_cosine(embeddings))}
    for name, value in expected.items():
        assert log[f"val/{name}"].dropna().iloc[-1] == pytest.approx(value, abs=1e-4), name


def test_a_process_leaves_its_group(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    torch.distributed.all_reduce(torch.ones(3))
    leave_group()
    assert not torch.distributed.is_initialized()
    leave_group()
    assert ranks() == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_ends_them_all(rank: int, scenes: Path, tmp_path: Path) -> None:
    watch = [f"+callbacks.fails={{_target_:driver.Fails,rank:{rank}}}", "callbacks.early_stopping=null"]
    done = drive(tmp_path, *tiny(scenes, *watch))
    assert done.returncode != 0
    assert f"error: rank {rank} has no more memory." in done.stderr.splitlines()
    if rank == 1:  # the first process says what it lost, or is ended before it can
        assert done.returncode == -9 or "Another process of this training failed" in done.stderr


def test_a_training_apart_tells_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"best": 0.5, "checkpoint": "checkpoints/winner.ckpt", "pruned": False}
    (tmp_path / "trains.py").write_text(
        f"import pathlib\npathlib.Path('metrics.json').write_text({json.dumps(figures)!r})"
    )
    monkeypatch.setattr(apart, "TRAIN", tmp_path / "trains.py")
    monkeypatch.chdir(tmp_path)
    result = apart.train_apart([], tmp_path)
    assert result.checkpoint == tmp_path / "checkpoints" / "winner.ckpt"
    assert (result.metrics, result.pruned) == ({"best": 0.5}, False)


@pytest.mark.slow
def test_each_job_of_a_sweep_may_be_of_two_processes(scenes: Path, tmp_path: Path) -> None:
    chosen = [s for s in tiny(scenes, "trainer.max_epochs=1", "seed=1,2") if not s.startswith("model.backbone")]
    done = drive(tmp_path, "-m", *chosen, "model.backbone=resnet18,resnet_tiny", "hydra.sweep.dir=sweep")
    assert done.returncode == 1, "the network that only tests know is not known to train.py"
    said = [line for line in done.stderr.splitlines() if line.startswith("error: job")]
    assert len(said) == 2
    assert all("model.backbone='resnet_tiny' is no torchvision ResNet" in line for line in said)
    kept = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "sweep").glob("*/checkpoints/best.ckpt"))
    assert len(kept) == 2, "the others are trained"
    assert all(load_model(tmp_path / path).prototypes for path in kept)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "0", "SLURM_PROCID": ""}, True),
    ],
)
def test_who_is_first(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first


def test_what_ends_a_training_is_told_apart_from_what_it_ends() -> None:
    own = ValueError("a fault")
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    assert end_together(own, [waiting]) is own
    assert waiting.wait(timeout=10) == -9


@pytest.mark.parametrize(
    "said",
    [
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9",
        "[gloo/transport/tcp/pair.cc:525] Read error [127.0.0.1]:9: Connection reset by peer",
        "NCCL error: remote process exited or there was a network error, NCCL version 2.27\nncclRemoteError: ...",
    ],
)
def test_a_process_that_lost_another_says_so(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    lost = end_together(RuntimeError(said), [])
    assert isinstance(lost, InputError)
    assert str(lost).startswith("Another process of this training failed")
    assert str(lost).endswith(said.splitlines()[0])


@pytest.mark.parametrize(
    "said",
    ["NCCL error: unhandled cuda error, out of memory", "[gloo/transport/tcp/device.cc] Unable to resolve hostname",
     "The peer access of these devices is not supported"],
)  # fmt: skip
def test_a_fault_of_its_own_is_not_put_on_another_process(said: str) -> None:
    own = RuntimeError(said)
    assert end_together(own, []) is own


@pytest.mark.parametrize("count", [2, 3, 4])
def test_validation_chips_are_shared_out_and_come_together_again(
    count: int, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(scenes, tmp_path)
    data: ChipDataModule = instantiate(cfg.data, sampler=instantiate(cfg.sampler))
    data.setup()
    shares = []
    for rank in range(count):
        monkeypatch.setattr(datamodule, "ranks", lambda rank=rank: (rank, count))
        shares.append(torch.cat([pixels for pixels, _ in data.val_dataloader()]))
    assert len({len(share) for share in shares}) == 1, "a share that is shorter would be waited for"
    every = torch.stack(shares).transpose(0, 1).flatten(0, 1)[: len(data.val_chips)]
    assert torch.equal(every, data.val_chips.pixels)
