"""Trains an embedder on labelled scenes: ``python train.py data.scenes=<folder>``; settings are in conf/."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from siamese_sat.door import door


@door("train")
def main(cfg: DictConfig) -> float:
    """Runs one training, or with ``hparams_search`` many, and returns the metric that a sweep optimises."""
    hydra = HydraConfig.get()
    if cfg.get("hparams_search") is not None:
        from siamese_sat.hparams.search import search_settings

        return search_settings(cfg, hydra.overrides.task)
    from siamese_sat.apart import starts_processes, train_apart
    from siamese_sat.training import monitored, train

    if hydra.mode == RunMode.MULTIRUN and starts_processes(cfg):
        return monitored(train_apart(hydra.overrides.task, cfg.paths.output_dir), cfg.optimized_metric)
    return monitored(train(cfg), cfg.optimized_metric)


if __name__ == "__main__":
    main()
