"""LanceDB, imported when an index is used and not before, and the inverted index that is made with it."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from siamese_sat.data.remote import reach_s3
from siamese_sat.errors import InputError
from siamese_sat.search.index.schema import MAP

# Windows of a partition: smaller ones LanceDB joins when rows are added, and finds less in them than before.
LEAST = 2560


def lancedb_module() -> ModuleType:
    """LanceDB itself.

    A process that has used it must not be forked: the child would wait for threads that it does not have.

    Raises:
        InputError: it is not installed.
    """
    # What it would say of every new table.
    os.environ.setdefault("LANCEDB_LOG", "error")
    reach_s3()
    try:
        import lancedb
    except ImportError as error:
        raise InputError("An index needs lancedb: pip install siamese-sat[index].") from error
    module: ModuleType = lancedb
    return module


def make_inverted(table: Any, count: int) -> None:  # noqa: ANN401 - a LanceDB table
    """Indexes a window table for search: IVF_RQ over its vectors, and its columns for filters.

    Two bits a dimension (RaBitQ, Gao and Long 2024) take an eighth of the vectors' room; what they rank high is
    compared again by whole vectors.

    Args:
        table: of windows.
        count: its rows.
    """
    from lancedb.index import Bitmap, BTree, IvfRq

    partitions = max(1, min(round(count**0.5), count // LEAST))
    config = IvfRq(distance_type="cosine", num_bits=2, num_partitions=partitions, max_iterations=20)
    table.create_index("vector", config=config, replace=True)
    for column in MAP:
        table.create_index(column, config=BTree(), replace=True)
    # Few values, or long runs of one.
    for column in ("scene", "scale"):
        table.create_index(column, config=Bitmap(), replace=True)
