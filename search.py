"""Searches scenes for what a few exemplars show; settings stand in conf/search.yaml.

``python search.py ckpt_path=<best.ckpt> scenes=<folder> exemplars.boxes='[[scene.tif,10,20,42,52,boat]]'``
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from siamese_sat.door import door


@door("search")
def main(cfg: DictConfig) -> None:
    """Runs one search; the exit status is 2 when a scene could not be searched."""
    from siamese_sat.searching import search

    if search(cfg).failed:
        sys.exit(2)


if __name__ == "__main__":
    main()
