"""`python -m gpugate` is `gpugate`."""

import sys

from gpugate.cli import main

if __name__ == "__main__":
    sys.exit(main())
