"""Settings in hydra's grammar of overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Parameters of a finished trial as overrides; choices are kept as they are written."""
    return [f"{name}={value if isinstance(value, str) else written(value)}" for name, value in params.items()]


def without(overrides: Sequence[str], names: Sequence[str]) -> list[str]:
    """The overrides but those of these settings, or groups, and of what lies within them in ``hparams_search``."""
    kept = []
    for text in overrides:
        name = text.split("=", 1)[0].lstrip("+~").split("@", 1)[0]
        if name not in names and re.split(r"[./]", name)[0] != "hparams_search":
            kept.append(text)
    return kept


def written(value: Any) -> str:  # noqa: ANN401 - a setting may be anything
    """A value in hydra's grammar of overrides."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str | Path):
        text = str(value)
        plain = text.replace("_", "").replace("-", "").isalnum() and text[0].isalpha()
        return text if plain and text.lower() not in ("null", "true", "false", "nan", "inf") else quoted(text)
    if isinstance(value, Sequence):
        return "[" + ", ".join(written(v) for v in value) + "]"
    return json.dumps(value)


def quoted(text: str) -> str:
    """A string between quotes: a backslash counts double before a quote, and as itself elsewhere."""
    inner = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    inner = re.sub(r"(\\+)$", lambda found: found[1] * 2, inner)
    return f"'{inner}'"
