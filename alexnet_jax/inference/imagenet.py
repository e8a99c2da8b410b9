"""The names of ImageNet's 1,000 classes, ILSVRC2012, which its data sets call by their synset numbers."""

import functools
from pathlib import Path


@functools.cache
def imagenet_names() -> dict[str, str]:
    """English names by synset, like "n02123045": "tabby, tabby cat", sorted by synset: the order of the outputs.

    The names are those of WordNet (Princeton University), in the file imagenet_classes.txt.
    """
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def english_name(class_name: str) -> str:
    """The English name of a synset of ImageNet; any other name of a class as it is."""
    return imagenet_names().get(class_name, class_name)


def title(class_name: str) -> str:
    """A class as people read it: of a synset of ImageNet its first two names, and the synset in parentheses."""
    names = english_name(class_name).split(", ")
    return f"{', '.join(names[:2])} ({class_name})" if class_name in imagenet_names() else class_name


def default_class_names(outputs: int) -> list[str]:
    """The names of the classes of weights that come without: ImageNet's synsets for 1,000 outputs, else numbers."""
    return list(imagenet_names()) if outputs == 1000 else [str(number) for number in range(outputs)]
