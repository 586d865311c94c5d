"""How PyTorch's threads wait for each other is settled before PyTorch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def told(given: dict[str, str], module: str = "siamese_sat") -> list[str]:
    """What a process that imports the module has in its environment then, and whether PyTorch came before it."""
    code = f"""
import {module}, os, sys
before = list(sys.modules)[:list(sys.modules).index("siamese_sat")]
print([os.environ.get(n) for n in {NAMES}], "torch" in before, sep="|")"""
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | given
    ran = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.strip().split("|")


def test_they_do_not_spin_for_long() -> None:
    assert told({}) == ["['10000', None]", "False"]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_says_stays(name: str) -> None:
    value = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "active"}[name]
    assert told({name: value})[0] == str([value if n == name else None for n in NAMES])


@pytest.mark.parametrize("script", ["search", "train"])
def test_the_scripts_say_it_in_time(script: str) -> None:
    assert told({}, script) == ["['10000', None]", "False"]
