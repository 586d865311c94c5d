"""Tells the study of a trial how each epoch went, and ends the training where the study has seen enough."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from siamese_sat.errors import InputError
from siamese_sat.hparams.study import STORAGE, need_optuna, open_storage

if TYPE_CHECKING:
    import optuna


class Pruning(Callback):
    """Reports a trial's metric after every epoch; where the pruner says so, the training ends after it.

    Optuna's own callback holds the trial itself, which a training of several processes, each a command of its own,
    cannot be given; this one finds it by its number. One process asks, all hear the answer.

    Args:
        study: name of the study in the storage that the environment names.
        number: of the trial.
        metric: to report.
        pruner: decides.
        parent: process that waits for this training, None where it is this one; without it nobody would take the
            result.
    """

    def __init__(
        self,
        study: str,
        number: int,
        metric: str,
        pruner: optuna.pruners.BasePruner,
        parent: int | None = None,
    ) -> None:
        self.study, self.number, self.metric, self.pruner, self.parent = study, number, metric, pruner, parent
        self.pruned = False
        self._trial: optuna.Trial | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports and asks; Lightning has validated by now."""
        value = trainer.callback_metrics.get(self.metric)  # by all: it may have to be gathered first
        behind = trainer.is_global_zero and self._behind(value, trainer.current_epoch)
        if trainer.strategy.broadcast(behind):
            self.pruned = trainer.should_stop = True

    def _behind(self, value: Tensor | None, epoch: int) -> bool:
        # Its parent is another only when it has none any more.
        if self.parent is not None and os.getppid() != self.parent:
            raise InputError("The search that wanted this trial has ended.")
        if value is None:
            return False
        if self._trial is None:
            self._trial = self._found()
        self._trial.report(float(value), epoch)
        return bool(self._trial.should_prune())

    def _found(self) -> optuna.Trial:
        need_optuna()
        import optuna

        storage = open_storage(os.environ[STORAGE])
        study = optuna.load_study(study_name=self.study, storage=storage, pruner=self.pruner)
        place = study.get_trials(deepcopy=False)[self.number]
        return optuna.Trial(study, place._trial_id)
