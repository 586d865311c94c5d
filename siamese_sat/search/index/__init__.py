"""Scenes embedded once and asked again: what is stored, how it is filled, and how it is asked."""
