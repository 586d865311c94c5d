"""Which weights stay on disk: the best so far, and the last, to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

LAST = "last.ckpt"


class BestAndLast(ModelCheckpoint):
    """`ModelCheckpoint` for the best epoch, and ``last.ckpt`` beside it after every epoch.

    Lightning's own ``save_last`` (2.6) writes in epochs that improve and in no other, so that a run killed ten epochs
    after its best would do these again. And a run that goes on in another folder forgets what was best before: here
    the best checkpoint so far goes along.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the best first: the last one carries what is the best so far."""
        super().on_train_epoch_end(trainer, pl_module)
        trainer.save_checkpoint(Path(str(self.dirpath)) / LAST, self.save_weights_only)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state of the run that is resumed, its best checkpoint included."""
        best, home = Path(state_dict["best_model_path"]), Path(str(self.dirpath))
        if state_dict.get("dirpath") != self.dirpath and best.is_file():
            here = home / best.name
            _copy(best, here)
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(here),
                "kth_best_model_path": str(here),
                "best_k_models": {str(here): state_dict["best_model_score"]},
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
