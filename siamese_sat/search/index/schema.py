"""Columns of the index's tables, and what goes between them and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

MAP = ("map_x_min", "map_y_min", "map_x_max", "map_y_max")
# Where a window lies in its scene.
BOX = ("scene", "x_min", "y_min", "x_max", "y_max", "scale")
PLACE = ("scene", "x_min", "y_min", "x_max", "y_max", "scale", "valid", *MAP, "date")


@dataclass(frozen=True)
class Entry:
    """A scene in the index.

    Attributes:
        scene: its number.
        path: by which it is known.
        windows: how many it has.
        size: of the file in bytes, when it was indexed; 0 for remote ones.
        modified: in ns, likewise.
        header: SHA-256 of its first bytes, likewise.
        about: the scene as text, see `from_json`.
    """

    scene: int
    path: str
    windows: int
    size: int
    modified: int
    header: str
    about: str


def entries_of(scenes: pd.DataFrame) -> list[Entry]:
    """Rows of the scene table one by one."""
    return [Entry(**row) for row in scenes[[f.name for f in fields(Entry)]].to_dict("records")]  # type: ignore[arg-type]


def window_schema(dimensions: int, cells: int = 0) -> Any:  # noqa: ANN401 - pyarrow is imported when it is used
    """Columns of a window, with ``cells`` bytes of its own cells where there are any.

    Box in pixels of the scene; ``scale``, the side of the window in these pixels; valid part 0..1; the box round its
    corners in degrees (EPSG:4326, longitude is x), null without a place on the map; date of the scene or null; vector
    of unit length in fp16.
    """
    import pyarrow as pa

    # Of neighbours on a grid most bytes are the same: split by place in the number and packed, 4 bytes become 0.4.
    packed = {"lance-encoding:bss": "on", "lance-encoding:compression": "lz4"}
    numbers = {c: pa.field(c, pa.float32(), metadata=packed) for c in (*BOX[1:5], "valid", *MAP)}
    return pa.schema(
        [
            ("scene", pa.int32()), *(numbers[c] for c in BOX[1:5]), ("scale", pa.int32()), numbers["valid"],
            *(numbers[c] for c in MAP), ("date", pa.date32()), ("vector", pa.list_(pa.float16(), dimensions)),
            *([("cells", pa.binary(cells))] if cells else []),
        ]
    )  # fmt: skip


def scene_schema() -> Any:  # noqa: ANN401 - pyarrow is imported when it is used
    """Columns of a scene: number, path, what it was when it was indexed, how many windows it has, and its place."""
    import pyarrow as pa

    return pa.schema(
        [
            ("scene", pa.int32()), ("path", pa.string()), ("size", pa.int64()), ("modified", pa.int64()),
            ("header", pa.string()), ("windows", pa.int64()), ("date", pa.date32()), ("about", pa.string()),
            *[(c, pa.float64()) for c in MAP],
        ]
    )  # fmt: skip


def vectors_of(table: Any) -> npt.NDArray[np.float32]:  # noqa: ANN401 - a pyarrow table
    """The column ``vector`` as ``[n, D]``."""
    column = table["vector"].combine_chunks() if hasattr(table["vector"], "combine_chunks") else table["vector"]
    values: npt.NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(len(column), -1)


def among(column: str, numbers: Sequence[int]) -> str:
    """The SQL condition that a column holds one of some numbers."""
    return f"{column} IN ({', '.join(str(int(n)) for n in numbers)})" if len(numbers) else "false"


def cells_of(table: Any) -> npt.NDArray[np.uint8]:  # noqa: ANN401 - a pyarrow table
    """The column ``cells`` as ``[n, bytes]``."""
    import pyarrow as pa

    column = table["cells"].combine_chunks() if hasattr(table["cells"], "combine_chunks") else table["cells"]
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    wide = column.type.byte_width
    start = column.offset * wide
    values = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * wide]
    return values.reshape(len(column), wide)


def fixed_binary(rows: npt.NDArray[np.uint8]) -> Any:  # noqa: ANN401 - a pyarrow array
    """Rows ``[n, bytes]`` as a column of binary values of one length."""
    import pyarrow as pa

    wide = rows.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(wide), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )
