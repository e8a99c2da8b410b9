"""Order, position, decoding and padding of batches."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.errors import UserError
from alexnet_jax.input_pipeline import decode_image, eval_batches, train_batches


class Numbered:
    """Records whose image is their number."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image": np.full((4, 4, 3), index, np.uint8), "label": index % 3}


def ids(
    size: int, batch_size: int, count: int, seed: int = 0, start: int = 0, threads: int = 2
) -> list[tuple[int, int]]:
    """(epoch, id) of the first `count` examples."""
    stream = train_batches(
        Numbered(size), image_size=4, batch_size=batch_size, seed=seed, start_example=start, num_threads=threads
    )
    pairs: list[tuple[int, int]] = []
    for batch in itertools.islice(stream, -(-count // batch_size)):
        assert (batch["image"][:, 0, 0, 0] == batch["id"]).all()
        assert (batch["label"] == batch["id"] % 3).all()
        pairs += zip(batch["epoch"].tolist(), batch["id"].tolist(), strict=True)
    stream.close()
    return pairs[:count]


@pytest.mark.parametrize("size", [1, 7, 13])
def test_every_example_once_an_epoch_in_a_new_order(size: int) -> None:
    stream = ids(size, batch_size=4, count=3 * size)
    orders = [[i for epoch, i in stream if epoch == number] for number in range(3)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 1:
        assert len({tuple(order) for order in orders}) == 3


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    reference = ids(13, batch_size=4, count=60)
    assert ids(13, batch_size=1, count=60, threads=1) == reference
    assert ids(13, batch_size=20, count=60, threads=8) == reference
    assert ids(13, batch_size=4, count=60, seed=1) != reference


@pytest.mark.parametrize("start", [1, 12, 13, 29])
def test_starting_anywhere_continues_the_same_stream(start: int) -> None:
    assert ids(13, batch_size=3, count=20, start=start) == ids(13, batch_size=4, count=60)[start : start + 20]


def test_starting_late_costs_nothing() -> None:
    class Counting(Numbered):
        reads = 0

        def __getitem__(self, index: int) -> dict[str, object]:
            Counting.reads += 1
            return super().__getitem__(index)

    stream = train_batches(Counting(7), image_size=4, batch_size=2, seed=0, start_example=10**9, num_threads=1)
    next(stream)
    stream.close()
    assert Counting.reads < 100


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_evaluation_shows_each_image_once_and_pads_the_rest(batch_size: int) -> None:
    batches = list(eval_batches(Numbered(13), image_size=4, batch_size=batch_size, num_threads=2))
    assert all(len(batch["label"]) == batch_size for batch in batches)
    assert [i for batch in batches for i in batch["id"][batch["mask"]]] == list(range(13))


def encode(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def test_a_wide_picture_is_scaled_by_its_shorter_side_and_cropped_in_the_middle() -> None:
    # The report's example: 1024x500 becomes 524x256, of which the middle 256 columns stay.
    wide = np.zeros((500, 1024, 3), np.uint8)
    wide[:, 262:762] = 255
    square = decode_image(encode(Image.fromarray(wide), "PNG"), 256)
    assert square.shape == (256, 256, 3)
    assert square[:, 2:-2].min() == 255


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (10, 10), (255, 255, 255)).convert(mode)
    decoded = decode_image(encode(image, "TIFF" if mode == "CMYK" else "PNG"), 8)
    np.testing.assert_array_equal(decoded, np.full((8, 8, 3), 255, np.uint8))


def test_a_record_that_is_no_image_is_named() -> None:
    class Broken(Numbered):
        def __getitem__(self, index: int) -> dict[str, object]:
            return {"image": b"not an image", "label": 0}

    with pytest.raises(UserError, match="record 0 does not hold a readable image"):
        next(eval_batches(Broken(1), image_size=4, batch_size=1, num_threads=1))
