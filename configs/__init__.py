"""Configs: each file has a get_config() that returns every key with its value for a network or an experiment."""
