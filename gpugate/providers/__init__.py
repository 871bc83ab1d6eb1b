"""Providers as gpugate finds them (`registry`), and the two it brings along; no logic in here."""
