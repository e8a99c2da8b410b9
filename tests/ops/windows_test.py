"""Output sizes and padding of sliding windows."""

import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.ops.windows import output_size, window_padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "ceil", "outputs", "padding"),
    [
        pytest.param(224, 11, 4, 0, True, 55, (0, 3), id="conv1 of the source"),
        pytest.param(227, 11, 4, 0, False, 55, (0, 0), id="conv1 of Caffe"),
        pytest.param(224, 11, 4, 2, False, 55, (2, 2), id="conv1 of torchvision"),
        pytest.param(224, 11, 4, 0, False, 54, (0, 0), id="conv1 as printed falls short of 55"),
        pytest.param(55, 3, 2, 0, False, 27, (0, 0), id="pool1"),
        pytest.param(5, 2, 2, 0, True, 3, (0, 1), id="a window with one pixel inside"),
    ],
)
def test_window_padding(
    size: int, kernel: int, stride: int, pad: int, ceil: bool, outputs: int, padding: tuple[int, int]
) -> None:
    assert output_size(size, kernel, stride, pad, ceil) == outputs
    assert window_padding(size, kernel, stride, pad, ceil) == padding


@pytest.mark.parametrize("ceil", [False, True])
def test_maps_of_67_pixels_need_no_rounding(ceil: bool) -> None:
    windows = {67: (11, 4), 15: (3, 2), 7: (3, 2), 3: (3, 2)}
    assert [output_size(size, *window, 0, ceil) for size, window in windows.items()] == [15, 7, 3, 1]
    assert all(window_padding(size, *window, 0, ceil) == (0, 0) for size, window in windows.items())


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride", "pad"), [(1, 3, 2, 0), (2, 3, 2, 0), (2, 5, 1, 1), (8, 11, 4, 1)])
def test_window_that_does_not_fit(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> None:
    with pytest.raises(UserError, match=f"{kernel}x{kernel}.*{size}x{size}"):
        window_padding(size, kernel, stride, pad, ceil)
