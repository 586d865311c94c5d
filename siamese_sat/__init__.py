"""Find things in satellite images from a handful of examples."""

import os

__version__ = "0.1.0"

# PyTorch's threads, done with their part, look for the next 300,000 times before they sleep, on cores that OpenVINO
# computes on by then: 3 to 9 % of a search of single windows (GOMP_SPINCOUNT=300000 benchmarks/search_speed.py --side
# 3072 --sides exact). With this many they still see PyTorch's own next operation. Read when PyTorch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
