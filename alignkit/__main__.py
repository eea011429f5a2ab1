"""What `python -m alignkit`, `accelerate launch -m alignkit` and `torchrun -m alignkit` run."""

import sys

from alignkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
