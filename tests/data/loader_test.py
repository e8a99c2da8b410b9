"""Batches: order, position, reading ahead, padding and the cache of training images."""

import functools
import gc
import itertools
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import pytest

from alexnet_jax.config import check_value
from alexnet_jax.data.loader import (
    HostBatch,
    choose_cache,
    eval_batches,
    load_into_memory,
    train_batches,
    training_order,
)
from alexnet_jax.errors import UserError
from alexnet_jax.system import machine

SIDE = 4
BATCHES = {
    "train": lambda records, batch_size: train_batches(
        records, batch_size=batch_size, seed=0, start_example=0, num_threads=2
    ),
    "eval": lambda records, batch_size: eval_batches(records, batch_size=batch_size, num_threads=2),
}


def pictures(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Images for some ids: no two of 256 are equal, nor two pixels of one image."""
    numbers = np.asarray(ids, np.uint8).reshape(-1, 1, 1, 1)
    return numbers + np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(1, SIDE, SIDE, 3)


class Pictures:
    """Records that remember what was read of them; `before` is called with the ids of each read."""

    image_size = SIDE

    def __init__(
        self, size: int, before: Callable[[np.ndarray], object] = lambda ids: None, is_compressed: bool = False
    ):
        self.labels = (np.arange(size) % 3).astype(np.int32)
        self.before, self.is_compressed = before, is_compressed
        self.seen: list[int] = []

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        self.before(np.asarray(indices))
        self.seen += np.asarray(indices).tolist()
        out[:] = pictures(indices)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    if threading.active_count() > before:
        gc.collect()  # closes streams that nobody closed
    assert threading.active_count() == before


def check(batch: HostBatch) -> None:
    """Raises AssertionError if image and label are not those of the id."""
    np.testing.assert_array_equal(batch["image"], pictures(batch["id"]))
    np.testing.assert_array_equal(batch["label"], batch["id"] % 3)


def pairs(batches: Generator[HostBatch], count: int) -> list[tuple[int, int]]:
    """(epoch, id) of the first `count` examples."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        batch = next(batches)
        found += zip(batch["epoch"].tolist(), batch["id"].tolist(), strict=True)
    batches.close()
    return found[:count]


def read_pairs(
    size: int, batch_size: int, count: int, seed: int = 0, start: int = 0, threads: int = 2
) -> list[tuple[int, int]]:
    """The same for batches with images, when reads take random times."""
    delay = np.random.default_rng(1)

    def checked() -> Generator[HostBatch]:
        records = Pictures(size, before=lambda ids: time.sleep(delay.uniform(0, 0.002)))
        for batch in train_batches(records, batch_size=batch_size, seed=seed, start_example=start, num_threads=threads):
            assert {name: (len(values), values.dtype) for name, values in batch.items()} == {
                "image": (batch_size, np.uint8),
                **dict.fromkeys(("label", "id", "epoch"), (batch_size, np.int32)),
            }
            check(batch)
            yield batch

    return pairs(checked(), count)


@pytest.mark.parametrize("size", [1, 7, 13])
@pytest.mark.parametrize("batch_size", [1, 4, 13, 20, 40])
def test_every_example_once_an_epoch_in_a_new_order(size: int, batch_size: int) -> None:
    stream = read_pairs(size, batch_size, count=4 * size)
    orders = [[i for epoch, i in stream if epoch == number] for number in range(4)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert [epoch for epoch, _ in stream] == sorted(epoch for epoch, _ in stream)
    if size > 1:
        assert len({tuple(order) for order in orders}) == 4


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    reference = pairs(training_order(100, 4, 0, 0), 300)
    for batch_size, threads in [(1, 1), (7, 3), (33, 2), (70, 8), (128, 4), (250, 0)]:
        assert read_pairs(100, batch_size, 300, threads=threads) == reference
    assert read_pairs(100, 7, 300, seed=1) != reference


def test_no_seed_repeats_the_epochs_of_another() -> None:
    orders = [
        tuple(i for epoch, i in pairs(training_order(30, 30, seed, 0), 120) if epoch == number)
        for seed in range(4)
        for number in range(4)
    ]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("size", [1, 7, 13])
def test_starting_anywhere_continues_the_same_stream(size: int) -> None:
    whole = pairs(training_order(size, 5, 3, 0), 80)
    for start, batch_size in itertools.product(range(40), (1, 3, 20)):
        assert pairs(training_order(size, batch_size, 3, start), 40) == whole[start : start + 40]
    assert read_pairs(size, 3, 20, seed=3, start=29) == whole[29:49]


def test_starting_late_costs_nothing() -> None:
    records = Pictures(7)
    began = time.monotonic()
    stream = train_batches(records, batch_size=2, seed=0, start_example=10**9, num_threads=1)
    epoch, place = divmod(10**9, 7)
    tail = pairs(training_order(7, 7, 0, epoch * 7), 14)[place:]
    assert pairs(stream, 4) == tail[:4]
    assert time.monotonic() - began < 2
    assert len(records.seen) <= 10


def settled(records: Pictures) -> int:
    """The number of images read, once it no longer changes."""
    before = -1
    while before != len(records.seen):
        before = len(records.seen)
        time.sleep(0.05)
    return before


@pytest.mark.parametrize("batch_size", [8, 32, 100])
def test_reading_ahead_is_a_few_batches_and_no_more(batch_size: int) -> None:
    records = Pictures(250)
    stream = train_batches(records, batch_size=batch_size, seed=0, start_example=0, num_threads=3)
    assert settled(records) == 0  # nothing is read before it is asked for
    for number in range(1, 6):
        next(stream)
        assert (number + 1) * batch_size <= settled(records) <= (number + 4) * batch_size + 32
    stream.close()


def test_threads_read_at_the_same_time() -> None:
    together = threading.Barrier(3)
    records = Pictures(9, before=lambda ids: together.wait(timeout=10))
    list(eval_batches(records, batch_size=3, num_threads=3))
    assert sorted(records.seen) == list(range(9))


@pytest.mark.parametrize(("num_threads", "expected"), [(1, 1), (3, 3), (0, machine.available_cores())])
def test_no_more_threads_than_asked_for(num_threads: int, expected: int) -> None:
    names: set[str] = set()

    def note(ids: np.ndarray) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.002)

    list(eval_batches(Pictures(300, before=note), batch_size=8, num_threads=num_threads))
    assert len(names) == expected


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_ends_the_threads_and_drops_what_waits(kind: str, taken: int) -> None:
    before = threading.active_count()
    records = Pictures(1000, before=lambda ids: time.sleep(0.01))
    stream = BATCHES[kind](records, 200)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert threading.active_count() == before
    assert len(records.seen) <= (taken * 200 + 2 * 32 * 4 if taken else 0)


def broken_at(bad: int, error: Exception) -> Callable[[np.ndarray], None]:
    def before(ids: np.ndarray) -> None:
        if bad in ids:
            raise error

    return before


@pytest.mark.parametrize("kind", BATCHES)
def test_an_image_that_cannot_be_read_ends_the_stream_where_it_stands(kind: str) -> None:
    stream = BATCHES[kind](Pictures(64, broken_at(50, UserError("image 50"))), 8)
    intact = BATCHES[kind](Pictures(64), 8)
    for expected in itertools.takewhile(lambda batch: 50 not in batch["id"], intact):
        np.testing.assert_array_equal(next(stream)["image"], expected["image"])
    intact.close()
    with pytest.raises(UserError, match="image 50"):
        next(stream)


def test_images_that_cannot_be_loaded_end_the_loading_at_once() -> None:
    def before(ids: np.ndarray) -> None:
        if 0 in ids:
            raise UserError("no such sector")
        time.sleep(0.005)

    records = Pictures(3200, before)
    with pytest.raises(UserError, match="no such sector"):
        load_into_memory(records, num_threads=2)
    assert len(records.seen) < 1600


@pytest.mark.parametrize("batch_size", [1, 4, 7, 13, 64])
def test_evaluation_shows_each_image_once_and_pads_the_rest(batch_size: int) -> None:
    batches = list(eval_batches(Pictures(13), batch_size=batch_size, num_threads=2))
    for batch in batches:
        mask = batch["mask"]
        assert mask.dtype == bool and {len(values) for values in batch.values()} == {batch_size}
        check({name: values[mask] for name, values in batch.items()})
        assert not any(values[~mask].any() for values in batch.values())
    assert [i for batch in batches for i in batch["id"][batch["mask"]]] == list(range(13))


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_own_their_memory(kind: str) -> None:
    stream = BATCHES[kind](load_into_memory(Pictures(90), 2), 8)
    held = list(itertools.islice(stream, 12))
    stream.close()
    for batch in held[:11]:
        check(batch)
    for one, other in itertools.combinations(held, 2):
        assert not any(np.shares_memory(one[name], other[name]) for name in ("image", "label", "id"))
    held[0]["image"][:] = 0
    check(held[1])


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_loading_is_reading_one_by_one(num_threads: int) -> None:
    records = Pictures(101, is_compressed=True)
    loaded = load_into_memory(records, num_threads)
    assert sorted(records.seen) == list(range(101))
    one = np.empty((1, SIDE, SIDE, 3), np.uint8)
    for index in range(101):
        records.read([index], one)
        np.testing.assert_array_equal(loaded.images[index], one[0])
    np.testing.assert_array_equal(loaded.labels, records.labels)
    assert loaded.image_size == SIDE and not loaded.is_compressed
    chosen = np.array([100, 3, 3, 0])
    out = np.empty((4, SIDE, SIDE, 3), np.uint8)
    loaded.read(chosen, out)
    np.testing.assert_array_equal(out, pictures(chosen))


NEEDED = 100 * SIDE * SIDE * 3
ROOM, TIGHT, LITTLE = 4 * NEEDED, 4 * NEEDED - 1, NEEDED - 1


@pytest.mark.parametrize(
    ("cache", "is_compressed", "device_bytes", "host_bytes", "expected"),
    [
        ("auto", True, ROOM, ROOM, "device"),
        ("auto", False, ROOM, ROOM, "device"),
        ("auto", True, TIGHT, ROOM, "host"),
        ("auto", False, TIGHT, ROOM, "disk"),
        ("auto", True, TIGHT, TIGHT, "disk"),
        ("auto", True, None, ROOM, "host"),
        ("auto", False, None, ROOM, "disk"),
        ("auto", True, None, TIGHT, "disk"),
        ("auto", True, LITTLE, LITTLE, "disk"),
        ("device", True, NEEDED, ROOM, "device"),
        ("device", False, None, NEEDED, "device"),
        ("host", True, None, NEEDED, "host"),
        ("host", False, LITTLE, NEEDED, "host"),
        ("disk", True, ROOM, ROOM, "disk"),
        ("disk", False, None, LITTLE, "disk"),
    ],
)
def test_where_images_lie(
    cache: str, is_compressed: bool, device_bytes: int | None, host_bytes: int, expected: str
) -> None:
    records = Pictures(100, is_compressed=is_compressed)
    assert choose_cache(cache, records, device_bytes, host_bytes) == expected


@pytest.mark.parametrize(
    ("cache", "device_bytes", "host_bytes"),
    [("device", LITTLE, ROOM), ("device", None, LITTLE), ("host", ROOM, LITTLE), ("host", None, LITTLE)],
)
def test_a_memory_that_is_too_small_is_refused(cache: str, device_bytes: int | None, host_bytes: int) -> None:
    with pytest.raises(UserError, match=rf"config\.data\.cache='{cache}'.*'disk' or 'auto'"):
        choose_cache(cache, Pictures(100), device_bytes, host_bytes)


def test_images_pass_through_the_hosts_memory_to_the_device() -> None:
    assert choose_cache("auto", Pictures(100), ROOM, LITTLE) == "disk"
    assert choose_cache("auto", Pictures(100), ROOM, 2 * NEEDED) == "device"
    assert choose_cache("auto", Pictures(100), ROOM, 2 * NEEDED - 1) == "disk"
    with pytest.raises(UserError, match=r"config\.data\.cache='device': "):
        choose_cache("device", Pictures(100), ROOM, LITTLE)


def test_an_unknown_cache_is_refused() -> None:
    for refuse in (
        functools.partial(check_value, "data.cache"),
        lambda name: choose_cache(name, Pictures(1), None, ROOM),
    ):
        with pytest.raises(UserError, match=r"config\.data\.cache='cloud'.*auto, device"):
            refuse("cloud")


@pytest.mark.parametrize("size", [5, 200])
def test_memory_stays_the_same_over_a_hundred_epochs(size: int) -> None:
    records = load_into_memory(Pictures(size), 1)
    stream = train_batches(records, batch_size=50, seed=0, start_example=0, num_threads=2)
    tracemalloc.start()
    try:
        used = []
        for count in (20, 400):
            for batch in itertools.islice(stream, count):
                image_bytes = batch["image"].nbytes
            gc.collect()
            used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        stream.close()
    assert used[1] - used[0] < 10 * image_bytes
