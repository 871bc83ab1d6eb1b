"""A plain proxy, run as its own process; it knows nothing of gpugate."""
