"""The proxies that people write first, each run as its own process; they know nothing of gpugate."""
