"""The commands of `alexnet` and `python -m alexnet_jax`, one file each, and what finds them."""
