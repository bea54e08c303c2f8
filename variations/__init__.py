"""Further ideas, one a file, each standing on one chapter: `python -m variations.NAME`."""
