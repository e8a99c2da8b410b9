"""The standing attack: kills, faults of the file system, damaged files, mutated images and weights; see __main__.py."""
