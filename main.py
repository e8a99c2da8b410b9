"""Trains AlexNet: `python main.py --config=configs/alexnet.py`."""

import sys

from alexnet_jax.cli import train

if __name__ == "__main__":
    train.run(sys.argv[:1], sys.argv[1:])
