"""Find things in satellite images from a handful of examples."""

import os

__version__ = "0.1.0"

# PyTorch's threads, done with their part, look for the next for milliseconds before they sleep, on cores that OpenVINO
# computes on by then: a twentieth of a search. This many looks are some 0.1 ms, as long as PyTorch takes to its next
# operation. Read when PyTorch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
