"""Trains AlexNet: `python main.py --config=configs/alexnet.py`."""

from alexnet_jax.cli.main import train

if __name__ == "__main__":
    train()
