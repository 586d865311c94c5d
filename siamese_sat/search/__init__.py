"""Exemplars in, detections out."""
