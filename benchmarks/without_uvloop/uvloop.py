"""Stands in front of uvloop on `PYTHONPATH`, for the runs on plain asyncio."""

raise ImportError("hidden by the benchmark")
