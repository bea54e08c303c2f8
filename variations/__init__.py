"""Variations: each changes one idea of one chapter. `python -m variations.NAME` from the repository root."""
