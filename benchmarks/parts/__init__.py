"""One module per question; each has `run(bench)`, which adds to the board."""
