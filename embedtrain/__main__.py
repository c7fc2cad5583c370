"""`python -m embedtrain`, and so `accelerate launch -m embedtrain evaluate ...`."""

import sys

from embedtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
