"""The commands of `python -m alexnet_jax`, one file each."""
