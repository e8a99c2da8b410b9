"""Benchmarks. Comparisons with other programs time both in one run and print the ratios."""
