"""The layer table of a network."""

from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.models.summary import LayerSummary, summarize, trace_shapes

LENET = AlexNet(**{**PRESETS["lenet"], "num_classes": 10})


def test_rows_are_what_has_parameters_or_changes_the_shape() -> None:
    assert summarize(LENET, crop=28) == [
        LayerSummary("conv1", (28, 28, 6), 75 * 6 + 6, 28 * 28 * 75 * 6),
        LayerSummary("pool1", (14, 14, 6), 0, 0),
        LayerSummary("conv2", (10, 10, 16), 25 * 6 * 16 + 16, 10 * 10 * 25 * 6 * 16),
        LayerSummary("pool2", (5, 5, 16), 0, 0),
        LayerSummary("fc3", (120,), 400 * 120 + 120, 400 * 120),
        LayerSummary("fc4", (84,), 120 * 84 + 84, 120 * 84),
        LayerSummary("fc5", (10,), 84 * 10 + 10, 84 * 10),
    ]


def test_normalisation_has_a_row_though_it_changes_no_shape() -> None:
    names = [row.name for row in summarize(AlexNet(**PRESETS["source"]), crop=224)]
    assert names[:6] == ["conv1", "lrn1", "pool1", "conv2", "lrn2", "map_norm2"]


def test_activations_are_in_the_order_of_the_network() -> None:
    variables, shapes = trace_shapes(LENET, crop=28)
    assert list(shapes) == ["conv1", "act1", "pool1", "conv2", "act2", "pool2", "fc3", "act3", "fc4", "act4", "fc5"]
    assert variables["params"]["fc3"]["kernel"].shape == (400, 120)
