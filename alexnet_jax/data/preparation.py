"""Every image made ready once: decoded, squared, stored compactly, counted and measured.

A source's parts are prepared side by side in DIRECTORY.partial, each complete once its inventory is written, so that an
interrupted preparation goes on where it stood. Renaming the folder makes a data set of it.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import shutil
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from alexnet_jax.data import statistics as inventory_lib
from alexnet_jax.data import storage
from alexnet_jax.data.images import TRAITS, encode_jpeg, to_square
from alexnet_jax.data.sources import SPLITS, Original, Source
from alexnet_jax.data.statistics import Inventory
from alexnet_jax.errors import UserError, check_choice, reason
from alexnet_jax.system import console
from alexnet_jax.system.files import open_lock
from alexnet_jax.system.machine import available_cores

STORAGES = ("auto", "jpeg", "raw")
_INFO_KEYS = {
    "source",
    "content",
    "storage",
    "image_size",
    "jpeg_quality",
    "class_names",
    "shards",
    "bytes",
    "unreadable",
    "traits",
    "statistics",
}
RAW_LIMIT = 4e9
"""Bytes up to which "auto" stores pixels: more would rarely stay in memory, and disks are slower than decoding."""


@dataclasses.dataclass(frozen=True)
class Storing:
    """How images are stored.

    Attributes:
      image_size: side of the stored square, in pixels.
      storage: "jpeg", "raw" (pixels), or "auto": raw for a small data set that the disk has room for.
      jpeg_quality: 1 to 100.
      validation_fraction, test_fraction: of the training images, where a source lacks these splits.
      max_quarantined: the share of unreadable images at which to stop.
      max_megapixels: an image of more counts as unreadable.
    """

    image_size: int
    storage: str
    jpeg_quality: int
    validation_fraction: float
    test_fraction: float
    max_quarantined: float
    max_megapixels: float

    def __post_init__(self) -> None:
        check_choice("config.data.storage", self.storage, STORAGES)


def prepare(source: Source, storing: Storing, directory: Path) -> None:
    """Makes a folder of a source's images, or finishes one that was begun; nothing if it is up to date.

    Raises UserError if the disk is too small, too many images are unreadable, a split would be empty, or the source is
    damaged. Whatever happens, what is prepared by then is kept for the next time.
    """
    fingerprint = source.fingerprint()
    try:
        if _is_up_to_date(directory, fingerprint):
            return
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _exclusively(directory):
            if _is_up_to_date(directory, fingerprint):
                return  # another process was faster
            if directory.exists():
                console.warn(f"the images have changed since {directory} was prepared: preparing them anew")
            job = _Job(source, storing, directory, fingerprint)
            try:
                job.run()
            except KeyboardInterrupt:
                if job.work.exists():
                    console.show(f"\nwhat is prepared is kept in {job.work}; the same command continues")
                raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk is full: {_free(directory) / 1e9:.2f} GB free in {directory.parent}. What is prepared is "
                "kept; make room, and the same command continues"
            ) from error
        raise UserError(f"{error.filename or directory}: {error.strerror or error}") from error


def read_info(directory: Path) -> dict[str, Any] | None:
    """What is known of a prepared folder; None if it is none. Raises UserError if it is damaged."""
    try:
        info = json.loads((directory / "info.json").read_text())
        if info.keys() != _INFO_KEYS:
            raise ValueError(f"keys are {', '.join(info)}")
        return info
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{directory}/info.json is damaged ({error}): delete {directory}, it is prepared anew"
        ) from error


def _is_up_to_date(directory: Path, fingerprint: str) -> bool:
    info = read_info(directory)
    if info is None or info["source"] != fingerprint:
        return False
    shutil.rmtree(_old(directory), ignore_errors=True)  # an interruption may have left it
    return True


def _old(directory: Path) -> Path:
    return directory.with_name(directory.name + ".old")


class _Job:
    """A preparation in its working folder."""

    def __init__(self, source: Source, storing: Storing, directory: Path, fingerprint: str):
        self.source, self.storing, self.directory, self.fingerprint = source, storing, directory, fingerprint
        self.work = directory.with_name(directory.name + ".partial")
        self.parts = source.parts()
        self.images = sum(part.images for part in self.parts)
        self.stop = threading.Event()
        self.storage = ""

    def run(self) -> None:
        began = time.monotonic()
        self.storage = self._begin_or_continue()
        done = [number for number in range(len(self.parts)) if self._load(number)]
        self._prepare_parts(done)
        inventories = [Inventory.load(self._inventory_path(number)) for number in range(len(self.parts))]
        total = Inventory.create(self.storing.image_size)
        for inventory in inventories:
            total.extend(inventory)
        self._check_quarantine(len(total.quarantine), len(total.quarantine) + len(total.label))
        info = self._complete(total, self._name_shards(inventories))
        self._publish()
        new = sum(self.parts[number].images for number in range(len(self.parts)) if number not in done)
        seconds = time.monotonic() - began
        report = inventory_lib.describe(info, total, self.directory, self.source.remarks)
        console.show_facts({**report, "time": f"{seconds:.1f} s, {new / seconds:,.0f} images/s"})

    def _begin_or_continue(self) -> str:
        """Finds or makes the working folder and returns the storage; its plan tells whether it is of these images."""
        plan_path = self.work / "plan.json"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            plan = json.loads(plan_path.read_text())
            if plan.keys() == {"source", "storage"} and plan["source"] == self.fingerprint:
                console.show(f"continuing the preparation in {self.work}")
                return plan["storage"]
        shutil.rmtree(self.work, ignore_errors=True)
        storage = self._choose_storage()
        self.work.mkdir()
        plan_path.write_text(json.dumps({"source": self.fingerprint, "storage": storage}))
        return storage

    def _choose_storage(self) -> str:
        """Says what the images will take, and raises UserError if the disk has less."""
        how, place, free = self.storing, self.directory.parent, _free(self.directory)
        pixels = self.images * how.image_size**2
        # Bytes a pixel of photographs at qualities of up to 90, 95 and 100, rounded up.
        density = 0.4 if how.jpeg_quality <= 90 else 0.6 if how.jpeg_quality <= 95 else 1.2
        shard = 2**17 * len(self.parts) * (1 + len(self.source.held_out))  # what an ArrayRecord file takes at least
        needs = {"jpeg": pixels * density + 700 * self.images + shard, "raw": pixels * 3.0}
        storage = how.storage
        if storage == "auto":
            storage = "raw" if needs["raw"] <= min(RAW_LIMIT, free / 2) else "jpeg"
        kind = "raw pixels" if storage == "raw" else f"JPEG of quality {how.jpeg_quality}"
        size = f"about {needs[storage] / 1e9:.2f} GB, {free / 1e9:.2f} GB free in {place}"
        console.show(f"preparing {self.images:,} images once, as {how.image_size} x {how.image_size} {kind}: {size}")
        if needs[storage] > free:
            less = " or config.data.storage=jpeg" if storage == "raw" else " or a smaller config.data.image_size"
            raise UserError(f"not enough disk: {size}. Give another config.data.prepared_dir{less}")
        return storage

    def _prepare_parts(self, done: list[int]) -> None:
        todo = [number for number in range(len(self.parts)) if number not in set(done)]
        work, finished = sum(part.size for part in self.parts), sum(self.parts[number].size for number in done)
        seen = unreadable = 0
        with (
            warnings.catch_warnings(),
            threadpool_limits(1, "blas"),
            console.work_progress("preparing", work, finished) as progress,
            ThreadPoolExecutor(available_cores()) as pool,
        ):
            warnings.filterwarnings("ignore", module="PIL")  # about odd EXIF data, without naming the file
            try:  # whatever ends this block early: the pool waits for its threads, which have to be told
                futures = [pool.submit(self._prepare_part, number, progress) for number in todo]
                for future in as_completed(futures):
                    part = future.result()
                    seen += len(part.label) + len(part.quarantine)
                    unreadable += len(part.quarantine)
                    if seen >= 1000:  # fewer tell little; at the end all are judged
                        self._check_quarantine(unreadable, max(seen, self.images))
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _prepare_part(self, number: int, progress: console.WorkProgress) -> Inventory:
        part, inventory = self.parts[number], Inventory.create(self.storing.image_size)
        writers: dict[str, storage.ShardWriter] = {}
        step, advanced = 16 * part.size // max(part.images, 1), 0
        with contextlib.ExitStack() as open_files:
            for count, original in enumerate(self.source.read(part), start=1):
                if self.stop.is_set():
                    raise InterruptedError
                stored = self._prepare_image(original, inventory)
                if stored:
                    split, *record = stored
                    if split not in writers:
                        writers[split] = self._open_shard(split, number)
                        open_files.callback(writers[split].close)
                    writers[split].write(*record)
                if count % 16 == 0 and advanced + step < part.size:
                    progress.advance(step, 16)
                    advanced += step
        inventory.save(self._inventory_path(number))
        progress.advance(part.size - advanced, 0)
        return inventory

    def _prepare_image(self, original: Original, inventory: Inventory) -> tuple[str, Any, bytes, int, str] | None:
        """Split and what a shard stores of it; None for an image that goes to quarantine."""
        try:
            content = original.content
            data = content.read_bytes() if isinstance(content, Path) else content
            square = to_square(data, self.storing.image_size, self.storing.max_megapixels * 1e6)
        except Exception as error:  # decoders raise anything on broken data
            inventory.quarantine.append((original.split, original.file, reason(error)))
            return None
        digest = hashlib.sha256(np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data).digest()
        split = self._split_of(original.split, digest)
        inventory.add(split, original.label, original.file, digest, square.traits, square.pixels)
        jpeg = b""
        if self.storage == "jpeg":
            jpeg = square.jpeg or encode_jpeg(square.pixels, self.storing.jpeg_quality)
        return split, square.pixels, jpeg, original.label, original.file

    def _split_of(self, split: str, digest: bytes) -> str:
        """Moves a training image to a split that the source lacks, if its content's hash falls there."""
        if split != "train":
            return split
        place = int.from_bytes(digest[:8], "big") / 2**64
        fractions = {"test": self.storing.test_fraction, "validation": self.storing.validation_fraction}
        for name, fraction in fractions.items():
            if name in self.source.held_out:
                if place < fraction:
                    return name
                place -= fraction
        return split

    def _open_shard(self, split: str, number: int) -> storage.ShardWriter:
        path = self.work / storage.working_name(split, number, self.storage)
        return storage.PixelWriter(path, self.storing.image_size) if self.storage == "raw" else storage.JpegWriter(path)

    def _check_quarantine(self, unreadable: int, images: int) -> None:
        if unreadable <= self.storing.max_quarantined * images:
            return
        inventories = map(self._load, range(len(self.parts)))
        rows = [row for inventory in inventories if inventory for row in inventory.quarantine]
        table = self.work / inventory_lib.QUARANTINE
        inventory_lib.write_table(table, ("split", "file", "reason"), rows)
        raise UserError(
            f"{unreadable:,} of {images:,} images are unreadable, more than config.data.max_quarantined="
            f"{self.storing.max_quarantined:g} allows: see {table}"
        )

    def _complete(self, total: Inventory, sizes: dict[str, list[tuple[str, int, int]]]) -> dict[str, Any]:
        """Writes everything that is known about the images and their shards."""
        directory, size, class_names = self.work, self.storing.image_size, self.source.class_names
        for split in ("train", "validation"):
            if split not in sizes:
                shutil.rmtree(directory)  # with other fractions or images nothing in it is of use
                hint = "larger" if split == "validation" else "smaller"
                raise UserError(
                    f"no image was left for the {split} split: give more images or a {hint} "
                    f"config.data.validation_fraction (it is {self.storing.validation_fraction:g})"
                )
        if self.storage == "jpeg":
            storage.write_tfds_metadata(
                directory, class_names, size, {s: [n for _, n, _ in rows] for s, rows in sizes.items()}
            )
        inventory_lib.write_tables(directory, total, class_names)
        statistics = total.statistics()
        inventory_lib.save_mean_image(directory, statistics)
        inventory_lib.save_examples(directory, total)
        info = {
            "source": self.fingerprint,
            "content": total.content(),
            "storage": self.storage,
            "image_size": size,
            "jpeg_quality": self.storing.jpeg_quality,
            "class_names": class_names,
            "shards": sizes,
            "bytes": sum(size for rows in sizes.values() for _, _, size in rows),
            "unreadable": len(total.quarantine),
            "traits": {trait: total.traits[trait] for trait in TRAITS},
            "statistics": {name: value for name, value in vars(statistics).items() if name != "mean_image"},
        }
        (directory / "info.json").write_text(json.dumps(info, indent=2))
        return info

    def _name_shards(self, inventories: list[Inventory]) -> dict[str, list[tuple[str, int, int]]]:
        """Gives the shards their final names and returns these with numbers of images and of bytes, by split."""
        named: dict[str, list[tuple[str, int, int]]] = {}
        for split in SPLITS:
            counts = {part: inv.split.count(split) for part, inv in enumerate(inventories) if split in inv.split}
            for number, (part, count) in enumerate(counts.items()):
                path = self.work / storage.final_name(split, number, len(counts), self.storage)
                with contextlib.suppress(FileNotFoundError):  # done before an interruption
                    (self.work / storage.working_name(split, part, self.storage)).rename(path)
                named.setdefault(split, []).append((path.name, count, path.stat().st_size))
        return named

    def _publish(self) -> None:
        """Takes the place of what was prepared before."""
        for path in [*self.work.glob("part-*"), self.work / "plan.json"]:
            path.unlink(missing_ok=True)
        old = _old(self.directory)
        shutil.rmtree(old, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(old)
        self.work.rename(self.directory)
        shutil.rmtree(old, ignore_errors=True)

    def _load(self, number: int) -> Inventory | None:
        """The inventory of a part; None if it is not complete."""
        try:
            return Inventory.load(self._inventory_path(number))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def _inventory_path(self, number: int) -> Path:
        return self.work / f"part-{number:05d}.npz"


@contextlib.contextmanager
def _exclusively(directory: Path) -> Iterator[None]:
    """Lets one process at a time prepare a folder; the kernel gives the lock back when a process dies."""
    with open_lock(directory.with_name(directory.name + ".lock")) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.show(f"another process is preparing {directory}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory.parent).free
