"""Data and tensor parallelism: devices, collectives, compiled programs and processes."""
