"""Lines of `layers` in presets.toml, for networks whose layers do not stand in a single row."""

from typing import Any


class Lines(list[dict[str, Any]]):
    """The lines of a network so far; the names of activations are those that `AlexNet` gives them."""

    def conv(self, features: int, kernel: int, then: str, **line: Any) -> str:
        """Adds a convolution that keeps the size of maps at stride 1, without biases; returns its last activation."""
        first = {"conv": features, "kernel": kernel, "pad": kernel // 2, "then": then, "bias": None}
        self.append({**first, **line})
        return f"{then.split()[-1]}{len(self)}"
