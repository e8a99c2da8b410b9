"""How steps run on devices, and how devices and processes talk to each other."""
