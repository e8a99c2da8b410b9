"""Comparison of a config with the decisions of the paper, its source code and Caffe."""
