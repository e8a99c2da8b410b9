"""The names of ImageNet's classes."""

import re

from alexnet_jax.inference.imagenet import default_class_names, english_name, imagenet_names, title

KNOWN = {
    0: ("n01440764", "tench, Tinca tinca"),
    207: ("n02099601", "golden retriever"),
    281: ("n02123045", "tabby, tabby cat"),
    517: ("n03126707", "crane"),
    639: ("n03710721", "maillot, tank suit"),
    999: ("n15075141", "toilet tissue, toilet paper, bathroom tissue"),
}
"""Classes by the number of the output in torchvision and Caffe."""


def test_a_thousand_classes_in_the_order_of_synsets() -> None:
    classes = list(imagenet_names().items())
    assert len(classes) == 1000 and classes == sorted(classes)
    assert all(re.fullmatch(r"n\d{8}", synset) and name for synset, name in classes)
    assert {number: classes[number] for number in KNOWN} == KNOWN


def test_only_synsets_have_other_names() -> None:
    assert english_name("n02123045") == "tabby, tabby cat" and english_name("tabby") == "tabby"
    assert title("n15075141") == "toilet tissue, toilet paper (n15075141)" and title("tabby") == "tabby"


def test_names_of_classes_that_come_without() -> None:
    assert default_class_names(3) == ["0", "1", "2"] and default_class_names(1000)[281] == "n02123045"
