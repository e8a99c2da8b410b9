"""Many runs: sweeps, ablations, Figure 1."""
