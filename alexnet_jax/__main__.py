"""`python -m alexnet_jax COMMAND`, the same as `alexnet COMMAND` where the package is installed."""

from alexnet_jax.cli.main import run

if __name__ == "__main__":
    run()
