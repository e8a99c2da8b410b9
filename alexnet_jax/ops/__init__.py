"""What the layers compute, as pure functions."""
