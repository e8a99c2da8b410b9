"""Inference: predict, evaluate, inspect, export and report on a trained network."""
