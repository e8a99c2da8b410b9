"""Every image prepared once: decoded, resized, stored compactly, counted and measured.

A source's chunks are prepared in parallel in DIRECTORY.partial, each complete once its inventory is written, so that an
interrupted preparation continues where it stopped. Renaming the folder makes a data set of it.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import shutil
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from alexnet_jax.config import check_value
from alexnet_jax.data import storage
from alexnet_jax.data.images import PROPERTIES, PreparedImage, resize_image
from alexnet_jax.data.inventory import QUARANTINE_TABLE, Inventory, describe, save_arrays, write_table, write_tables
from alexnet_jax.data.sources import SPLITS, Original, Source
from alexnet_jax.data.storage import FolderInfo, read_info
from alexnet_jax.errors import UserError, reason
from alexnet_jax.system import console
from alexnet_jax.system.files import acquire_lock
from alexnet_jax.system.machine import available_cores

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
      max_quarantined: the fraction of unreadable images above which to stop.
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
        check_value("data.storage", self.storage)


def prepare(source: Source, storing: Storing, directory: Path) -> None:
    """Prepares a source's images in a folder, or finishes one that was begun; does nothing if it is up to date.

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


def _is_up_to_date(directory: Path, fingerprint: str) -> bool:
    info = read_info(directory)
    if info is None or info.source != fingerprint:
        return False
    shutil.rmtree(_old(directory), ignore_errors=True)  # an interruption may have left it
    return True


def _old(directory: Path) -> Path:
    return directory.with_name(directory.name + ".old")


class _Job:
    """A preparation in its working folder.

    Attributes:
      work: the working folder.
      chunks: of the source.
      images: how many there are, as far as that is known beforehand.
      inventories: of the finished chunks, by number.
      storage: "jpeg" or "raw"; chosen when a preparation begins.
    """

    def __init__(self, source: Source, storing: Storing, directory: Path, fingerprint: str):
        self.source, self.storing, self.directory, self.fingerprint = source, storing, directory, fingerprint
        self.work = directory.with_name(directory.name + ".partial")
        self.chunks = source.chunks()
        self.images = sum(chunk.images for chunk in self.chunks)
        self.inventories: dict[int, Inventory] = {}
        self.storage = ""
        self._stop = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        self.storage = self._begin_or_continue()
        for number in range(len(self.chunks)):  # a damaged inventory counts as missing: its chunk is prepared again
            with contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
                self.inventories[number] = Inventory.load(self._inventory_path(number))
        unfinished = [number for number in range(len(self.chunks)) if number not in self.inventories]
        self._prepare_chunks(unfinished)
        total = Inventory(self.storing.image_size)
        for number in range(len(self.chunks)):
            total.extend(self.inventories[number])
        self._check_quarantine(total.images())
        info = self._complete(total, self._name_shards())
        self._publish()
        report = describe(info, total, self.directory, self.source.remarks)
        images, seconds = sum(self.chunks[number].images for number in unfinished), time.monotonic() - began
        console.show_facts({**report, "time": f"{seconds:.1f} s, {images / seconds:,.0f} images/s"})

    def _begin_or_continue(self) -> str:
        """Finds or makes the working folder and returns the storage. Its plan tells whether it is of these images."""
        plan_path = self.work / "plan.json"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            plan = json.loads(plan_path.read_text())
            if plan.keys() == {"source", "storage"} and plan["source"] == self.fingerprint:
                console.show(f"continuing the preparation in {self.work}")
                return plan["storage"]
        shutil.rmtree(self.work, ignore_errors=True)
        chosen = self._choose_storage()
        self.work.mkdir()
        plan_path.write_text(json.dumps({"source": self.fingerprint, "storage": chosen}))
        return chosen

    def _choose_storage(self) -> str:
        """Says how much room the images will take, and raises UserError if the disk has less."""
        storing, free = self.storing, _free(self.directory)
        pixels = self.images * storing.image_size**2
        # Bytes a pixel of photographs at qualities of up to 90, 95 and 100, rounded up.
        density = 0.4 if storing.jpeg_quality <= 90 else 0.6 if storing.jpeg_quality <= 95 else 1.2
        empty_shards = 2**17 * len(self.chunks) * (1 + len(self.source.held_out))  # the least of ArrayRecord files
        needs = {"jpeg": pixels * density + 700 * self.images + empty_shards, "raw": pixels * 3.0}
        chosen = storing.storage
        if chosen == "auto":
            chosen = "raw" if needs["raw"] <= min(RAW_LIMIT, free / 2) else "jpeg"
        kind = "raw pixels" if chosen == "raw" else f"JPEG of quality {storing.jpeg_quality}"
        room = f"about {needs[chosen] / 1e9:.2f} GB, {free / 1e9:.2f} GB free in {self.directory.parent}"
        size = f"{storing.image_size} x {storing.image_size}"
        console.show(f"preparing {self.images:,} images once, as {size} {kind}: {room}")
        if needs[chosen] > free:
            less = " or config.data.storage=jpeg" if chosen == "raw" else " or a smaller config.data.image_size"
            raise UserError(f"not enough disk: {room}. Give another config.data.prepared_dir{less}")
        return chosen

    def _inventory_path(self, number: int) -> Path:
        return self.work / f"part-{number:05d}.npz"

    def _prepare_chunks(self, numbers: list[int]) -> None:
        work = sum(chunk.size for chunk in self.chunks)
        finished = work - sum(self.chunks[number].size for number in numbers)
        with (
            warnings.catch_warnings(),
            threadpool_limits(1, "blas"),
            console.work_progress("preparing", work, finished) as progress,
            ThreadPoolExecutor(available_cores()) as pool,
        ):
            warnings.filterwarnings("ignore", module="PIL")  # about odd EXIF data, without naming the file
            try:  # whatever ends this block early: the pool waits for its threads, which have to be told
                futures = {pool.submit(self._prepare_chunk, number, progress): number for number in numbers}
                for future in as_completed(futures):
                    self.inventories[futures[future]] = future.result()
                    seen = sum(inventory.images() for inventory in self.inventories.values())
                    if seen >= 1000:  # fewer tell little; at the end all are judged
                        self._check_quarantine(max(seen, self.images))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _prepare_chunk(self, number: int, progress: console.ProgressBar) -> Inventory:
        chunk, inventory = self.chunks[number], Inventory(self.storing.image_size)
        shards: dict[str, storage.ShardWriter] = {}
        step, advanced = 16 * chunk.size // max(chunk.images, 1), 0
        with contextlib.ExitStack() as open_files:
            for count, original in enumerate(self.source.read(chunk), start=1):
                if self._stop.is_set():
                    raise InterruptedError
                image = self._prepare_image(original, inventory)
                if image:
                    if image.split not in shards:
                        shard = contextlib.closing(self._open_shard(image.split, number))
                        shards[image.split] = open_files.enter_context(shard)
                    shards[image.split].write(image)
                if count % 16 == 0 and advanced + step < chunk.size:
                    progress.advance(step, 16)
                    advanced += step
        inventory.save(self._inventory_path(number))
        progress.advance(chunk.size - advanced, 0)
        return inventory

    def _open_shard(self, split: str, number: int) -> storage.ShardWriter:
        path = self.work / storage.working_name(split, number, self.storage)
        if self.storage == "raw":
            return storage.PixelWriter(path, self.storing.image_size)
        return storage.JpegWriter(path, self.storing.jpeg_quality)

    def _prepare_image(self, original: Original, inventory: Inventory) -> PreparedImage | None:
        """Decodes, resizes and counts an image; None for an unreadable one."""
        try:
            content = original.content
            data = content.read_bytes() if isinstance(content, Path) else content
            resized = resize_image(data, self.storing.image_size, self.storing.max_megapixels * 1e6)
        except Exception as error:  # decoders raise anything on broken data
            inventory.quarantine.append((original.split, original.file, reason(error)))
            return None
        digest = hashlib.sha256(np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data).digest()
        split = self._split_of(original.split, digest)
        image = PreparedImage(split, original.label, original.file, digest, resized)
        inventory.add(image)
        return image

    def _split_of(self, split: str, digest: bytes) -> str:
        """Moves a training image to a split that the source lacks, if the digest of its content falls there."""
        if split != "train":
            return split
        position = int.from_bytes(digest[:8], "big") / 2**64
        fractions = {"test": self.storing.test_fraction, "validation": self.storing.validation_fraction}
        for name, fraction in fractions.items():
            if name in self.source.held_out:
                if position < fraction:
                    return name
                position -= fraction
        return split

    def _check_quarantine(self, images: int) -> None:
        """Raises UserError if too many images are unreadable, of so many."""
        unreadable = [row for _, inventory in sorted(self.inventories.items()) for row in inventory.quarantine]
        if len(unreadable) > self.storing.max_quarantined * images:
            table = self.work / QUARANTINE_TABLE
            write_table(table, ("split", "file", "reason"), unreadable)
            raise UserError(
                f"{len(unreadable):,} of {images:,} images are unreadable, more than config.data.max_quarantined="
                f"{self.storing.max_quarantined:g} allows: see {table}"
            )

    def _name_shards(self) -> storage.Shards:
        """Gives the shards their final names."""
        named: dict[str, list[tuple[str, int, int]]] = {}
        for split in SPLITS:
            counts = {number: self.inventories[number].split.count(split) for number in range(len(self.chunks))}
            chosen = [number for number, count in counts.items() if count]
            for index, number in enumerate(chosen):
                path = self.work / storage.final_name(split, index, len(chosen), self.storage)
                with contextlib.suppress(FileNotFoundError):  # done before an interruption
                    (self.work / storage.working_name(split, number, self.storage)).rename(path)
                named.setdefault(split, []).append((path.name, counts[number], path.stat().st_size))
        return named

    def _complete(self, total: Inventory, shards: storage.Shards) -> FolderInfo:
        """Writes everything that is known about the images and their shards."""
        for split in ("train", "validation"):
            if split not in shards:
                shutil.rmtree(self.work)  # with other fractions or images nothing in it is of use
                hint = "larger" if split == "validation" else "smaller"
                raise UserError(
                    f"no image was left for the {split} split: give more images or a {hint} "
                    f"config.data.validation_fraction (it is {self.storing.validation_fraction:g})"
                )
        if self.storage == "jpeg":
            storage.write_tfds_metadata(self.work, self.source.class_names, self.storing.image_size, shards)
        write_tables(self.work, total, self.source.class_names)
        statistics = total.sums.statistics(total.split.count("train"))
        save_arrays(self.work, total, statistics)
        info = FolderInfo(
            source=self.fingerprint,
            content=total.content(),
            storage=self.storage,
            image_size=self.storing.image_size,
            jpeg_quality=self.storing.jpeg_quality,
            class_names=self.source.class_names,
            shards=shards,
            bytes=sum(size for rows in shards.values() for _, _, size in rows),
            unreadable=len(total.quarantine),
            traits={name: total.traits[name] for name in PROPERTIES},
            statistics={name: value for name, value in vars(statistics).items() if name != "mean_image"},
        )
        info.write(self.work)
        return info

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


def _exclusively(directory: Path) -> contextlib.ExitStack:
    """Lets one process at a time prepare a folder; the kernel gives the lock back when a process dies."""
    lock = directory.with_name(directory.name + ".lock")
    held = acquire_lock(lock, timeout=0.0)
    if held is None:
        console.show(f"another process is preparing {directory}: waiting for it")
        held = acquire_lock(lock)
    assert held is not None  # without a timeout
    return held


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory.parent).free
