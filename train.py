"""Trains an embedder on labelled scenes: ``python train.py data.scenes=<folder>``; settings are in conf/."""

from __future__ import annotations

from omegaconf import DictConfig

from siamese_sat.door import door


@door("train")
def main(cfg: DictConfig) -> float:
    """Runs one training and returns the metric that a sweep optimises."""
    from siamese_sat.training import monitored, train

    return monitored(train(cfg), cfg.optimized_metric)


if __name__ == "__main__":
    main()
