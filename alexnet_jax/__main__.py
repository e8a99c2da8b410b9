"""Runs `python -m alexnet_jax COMMAND`, the same as `alexnet COMMAND` of the installed package."""

from alexnet_jax.cli.main import run

if __name__ == "__main__":
    run()
