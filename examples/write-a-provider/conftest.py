"""Its place makes pytest find `gpugate_wol` beside it, installed or not."""
