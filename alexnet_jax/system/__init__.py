"""The machine around a run: terminal, files, processor and memory, signals, versions."""
