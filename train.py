"""`accelerate launch train.py recipe=quickstart`: the same as `embedtrain train recipe=quickstart`."""

import sys

from embedtrain.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
