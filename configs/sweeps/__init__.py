"""Search spaces for `sweep`: each file has a get_space() that returns config keys and their values or ranges."""
