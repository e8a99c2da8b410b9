"""The machine around a run: terminal, files, processor, signals."""
