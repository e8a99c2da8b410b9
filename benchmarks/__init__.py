"""Measured comparisons: each prints ratios against a named peer, both timed in one run."""
