"""From original images to batches."""
