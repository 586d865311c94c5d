"""Find things in satellite images from a handful of examples."""

__version__ = "0.1.0"
