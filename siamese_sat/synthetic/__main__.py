"""Command line of the made-up data set."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from siamese_sat.errors import InputError
from siamese_sat.synthetic.dataset import NOVEL, make_dataset
from siamese_sat.synthetic.objects import CLASSES


def main(arguments: list[str] | None = None) -> int:
    """Writes a data set and prints where it lies; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m siamese_sat.synthetic",
        description="Write labelled 4-band scenes to train on, to search, and to take exemplars from.",
        epilog=f"Classes: {', '.join(CLASSES)}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to write; made if need be")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same scenes")
    parser.add_argument("--size", type=int, default=1024, help="width and height of a scene in pixels")
    parser.add_argument("--train-scenes", type=int, default=4)
    parser.add_argument("--search-scenes", type=int, default=2)
    parser.add_argument("--per-class", type=int, default=6, help="objects of each class in a scene")
    parser.add_argument("--exemplars-per-class", type=int, default=5, help="the same in the exemplar scene")
    parser.add_argument("--clutter", type=int, default=150, help="unlabelled things in a scene")
    parser.add_argument("--novel", nargs="*", default=list(NOVEL), metavar="CLASS", help="kept out of training")
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder")
    try:
        paths = make_dataset(folder, **options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        place, reason = error.filename or folder, error.strerror or error
        print(f"{place}: cannot be written ({reason}); give another folder.", file=sys.stderr)
        return 1
    for field in fields(paths):
        print(f"{field.name:16}{getattr(paths, field.name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
