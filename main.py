"""Trains AlexNet: `python main.py --config=configs/alexnet.py`."""

import sys

from alexnet_jax.cli.main import train

if __name__ == "__main__":
    train(sys.argv)
