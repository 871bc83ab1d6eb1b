"""What gpugate costs, measured beside its peers; knows the gateway only from outside."""
