"""The embedder, its training and its calibration."""
