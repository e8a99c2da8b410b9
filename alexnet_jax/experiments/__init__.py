"""Experiments of several runs: sweeps, ablations, and the paper's Figure 1."""
