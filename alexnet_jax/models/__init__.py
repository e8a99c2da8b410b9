"""The networks: layers in a row, each preset with its sources, and their shapes."""
