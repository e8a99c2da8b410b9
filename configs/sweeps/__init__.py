"""Search spaces for `sweep`: each file has a get_space()."""
