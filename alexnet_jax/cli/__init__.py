"""The commands of `alexnet` and `python -m alexnet_jax`, one module each, and their command line."""
