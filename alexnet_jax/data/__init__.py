"""Data sets: reading originals, preparing resized images once, and yielding batches."""
