"""Rasters, labels and chips: what enters the house."""
