"""Prepares a data set: decodes, resizes and stores every image once, and counts and measures the images.

The chunks of a source are prepared in parallel in DIRECTORY.partial. A chunk is complete once its inventory is written,
so an interrupted preparation continues with the others. At the end the folder is renamed to DIRECTORY.
"""

import contextlib
import dataclasses
import errno
import json
import shutil
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from threadpoolctl import threadpool_limits

from alexnet_jax.config import check_value
from alexnet_jax.data import storage
from alexnet_jax.data.images import PROPERTIES, RARE, PreparedImage, read_original, resize_image
from alexnet_jax.data.inventory import QUARANTINE_TABLE, Inventory, describe, save_arrays, write_table, write_tables
from alexnet_jax.data.manifest import write_manifest
from alexnet_jax.data.sources import SPLITS, Original, Source
from alexnet_jax.data.splitting import Splitting, digest_of
from alexnet_jax.data.storage import FolderInfo, read_info
from alexnet_jax.errors import UserError, failure_of_the_machine, reason
from alexnet_jax.system import console
from alexnet_jax.system.files import acquire_lock, flush
from alexnet_jax.system.machine import available_cores

RAW_LIMIT = 4e9
"""Bytes up to which "auto" stores raw pixels: more would rarely stay in memory, and decoding is faster than a disk."""


@dataclasses.dataclass(frozen=True)
class StorageOptions:
    """How images are prepared and stored; the keys of `config.data` of the same names.

    Attributes:
      image_size: side of the resized images, in pixels.
      storage: "jpeg", "raw" (pixels), or "auto": raw for a small data set if the disk has room for it.
      jpeg_quality: quality of stored JPEG images, 1 to 100.
      validation_fraction, test_fraction: fractions of the training images for splits that a source does not have.
      max_quarantined: fraction of unreadable images above which the preparation stops.
      max_megapixels: an image of more megapixels counts as unreadable.
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


def prepare(source: Source, options: StorageOptions, directory: Path) -> None:
    """Prepares the images of a source in a folder, or continues an interrupted preparation.

    Does nothing if the folder is up to date. After an error or a signal the finished chunks are kept for the next call.

    Raises UserError if the disk is too small, too many images are unreadable, a split would be empty or the source is
    damaged.
    """
    fingerprint = source.fingerprint()
    try:
        if _is_up_to_date(directory, fingerprint):
            return
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _exclusively(directory):
            if _is_up_to_date(directory, fingerprint):
                return  # another process has prepared it
            if directory.exists():
                console.warn(f"the images have changed since {directory} was prepared: preparing them again")
            job = _Job(source, options, directory, fingerprint)
            try:
                job.run()
            except KeyboardInterrupt:
                if job.work.exists():
                    console.show(f"\nthe work so far is kept in {job.work}; the same command continues it")
                raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk is full: {_free(directory) / 1e9:.2f} GB free in {directory.parent}. The prepared images "
                "are kept; free some space and give the same command to continue"
            ) from error
        place = Path(error.filename or directory)
        key = "config.data.prepared_dir: " if place.is_relative_to(directory.parent) else ""
        raise UserError(f"{key}{place}: {error.strerror or error}") from error


def _is_up_to_date(directory: Path, fingerprint: str) -> bool:
    """Whether a folder is prepared from originals of this fingerprint; removes the one that it has replaced."""
    info = read_info(directory)
    if info is None or info.source != fingerprint:
        return False
    shutil.rmtree(_old(directory), ignore_errors=True)  # left by an interruption
    return True


def _old(directory: Path) -> Path:
    return directory.with_name(directory.name + ".old")


class _Job:
    """One preparation.

    Attributes:
      work: the working folder, DIRECTORY.partial.
      chunks: chunks of the source.
      images: number of images, as far as the source knows it without reading them.
      inventories: inventories of the finished chunks, by number.
      storage: "jpeg" or "raw"; chosen when a preparation begins.
    """

    def __init__(self, source: Source, options: StorageOptions, directory: Path, fingerprint: str):
        self.source, self.options, self.directory, self.fingerprint = source, options, directory, fingerprint
        self.work = directory.with_name(directory.name + ".partial")
        self.chunks = source.chunks()
        self.images = sum(chunk.images for chunk in self.chunks)
        self.inventories: dict[int, Inventory] = {}
        self.storage = ""
        self._stop = threading.Event()

    def run(self) -> None:
        """Prepares the chunks that are not finished, completes the folder and prints the report."""
        began = time.monotonic()
        self.storage = self._begin_or_continue()
        fractions = {"test": self.options.test_fraction, "validation": self.options.validation_fraction}
        self._splitting = Splitting(self.source, fractions, self.options.max_megapixels * 1e6)
        for number in range(len(self.chunks)):  # a damaged inventory counts as missing: its chunk is prepared again
            with contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
                self.inventories[number] = Inventory.load(self._inventory_path(number))
        unfinished = [number for number in range(len(self.chunks)) if number not in self.inventories]
        self._prepare_chunks(unfinished)
        total = Inventory(self.options.image_size)
        for number in range(len(self.chunks)):
            total.extend(self.inventories[number])
        self._check_quarantine(total.images())
        info = self._complete(total, self._name_shards())
        self._publish()
        report = describe(info, total, self.directory, self.source.remarks)
        images, seconds = sum(self.chunks[number].images for number in unfinished), time.monotonic() - began
        console.show_facts({**report, "time": f"{seconds:.1f} s, {images / seconds:,.0f} images/s"})

    def _begin_or_continue(self) -> str:
        """Opens or makes the working folder and returns its storage; its plan.json tells if it is of these images."""
        plan_path = self.work / "plan.json"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            plan = json.loads(plan_path.read_text())
            if {**plan, "storage": ""} == self._plan(""):
                console.show(f"continuing the preparation in {self.work}")
                return plan["storage"]
        shutil.rmtree(self.work, ignore_errors=True)
        chosen = self._choose_storage()
        self.work.mkdir()
        plan_path.write_text(json.dumps(self._plan(chosen)))
        return chosen

    def _plan(self, storage: str) -> dict[str, object]:
        """What the chunks of a working folder have in common. Earlier versions did not look after small classes."""
        return {"source": self.fingerprint, "storage": storage, "is_stratified": self.source.is_stratified}

    def _choose_storage(self) -> str:
        """Resolves "auto" and prints the space needed. Raises UserError if the disk has less."""
        options, free = self.options, _free(self.directory)
        pixels = self.images * options.image_size**2
        # Bytes per pixel of photographs at qualities of up to 90, 95 and 100, rounded up.
        density = 0.4 if options.jpeg_quality <= 90 else 0.6 if options.jpeg_quality <= 95 else 1.2
        empty_shards = 2**17 * len(self.chunks) * (1 + len(self.source.held_out))  # least size of ArrayRecord files
        needs = {"jpeg": pixels * density + 700 * self.images + empty_shards, "raw": pixels * 3.0}
        chosen = options.storage
        if chosen == "auto":
            fits = needs["raw"] <= min(RAW_LIMIT, free / 2)
            chosen = "raw" if fits or not storage.has_array_record() else "jpeg"
        kind = "raw pixels" if chosen == "raw" else f"JPEG of quality {options.jpeg_quality}"
        room = f"about {needs[chosen] / 1e9:.2f} GB, {free / 1e9:.2f} GB free in {self.directory.parent}"
        size = f"{options.image_size} x {options.image_size}"
        console.show(f"preparing {self.images:,} images once, as {size} {kind}: {room}")
        if needs[chosen] > free:
            less = " or config.data.storage=jpeg" if chosen == "raw" else " or a smaller config.data.image_size"
            raise UserError(f"not enough disk space: {room}. Give another config.data.prepared_dir{less}")
        return chosen

    def _inventory_path(self, number: int) -> Path:
        return self.work / f"part-{number:05d}.npz"

    def _prepare_chunks(self, numbers: list[int]) -> None:
        """Prepares chunks in parallel, one thread per core; ends all of them at the first error."""
        work = sum(chunk.size for chunk in self.chunks)
        finished = work - sum(self.chunks[number].size for number in numbers)
        with (
            warnings.catch_warnings(),
            threadpool_limits(1, "blas"),
            console.work_progress("preparing", work, finished) as progress,
            ThreadPoolExecutor(available_cores()) as pool,
        ):
            warnings.filterwarnings("ignore", module="PIL")  # of broken EXIF data, which do not name the file
            try:
                futures = {pool.submit(self._prepare_chunk, number, progress): number for number in numbers}
                for future in as_completed(futures):
                    self.inventories[futures[future]] = future.result()
                    seen = sum(inventory.images() for inventory in self.inventories.values())
                    if seen >= 1000:  # fewer tell little; all are checked at the end
                        self._check_quarantine(max(seen, self.images))
            except BaseException:  # leaving the pool waits for its threads, so they must be told to stop
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _prepare_chunk(self, number: int, progress: console.ProgressBar) -> Inventory:
        """Prepares one chunk: writes its shards, one for each split, and its inventory."""
        chunk, inventory = self.chunks[number], Inventory(self.options.image_size)
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
                    if self.storage == "raw":
                        inventory.checksum.append(storage.checksum(image.resized.pixels))
                if count % 16 == 0 and advanced + step < chunk.size:
                    progress.advance(step, 16)
                    advanced += step
        for split in shards:  # before the inventory says that they are complete
            flush(self.work / storage.working_name(split, number, self.storage))
        inventory.save(self._inventory_path(number))
        progress.advance(chunk.size - advanced, 0)
        return inventory

    def _open_shard(self, split: str, number: int) -> storage.ShardWriter:
        path = self.work / storage.working_name(split, number, self.storage)
        if self.storage == "raw":
            return storage.PixelWriter(path, self.options.image_size)
        return storage.JpegWriter(path, self.options.jpeg_quality)

    def _prepare_image(self, original: Original, inventory: Inventory) -> PreparedImage | None:
        """Decodes, resizes and counts an image; returns None for an unreadable one."""
        try:
            max_pixels = self.options.max_megapixels * 1e6
            data = read_original(original.content, max_pixels)
            resized = resize_image(data, self.options.image_size, max_pixels)
        except Exception as error:  # decoders raise anything on broken data
            if isinstance(error, OSError) and failure_of_the_machine(error):
                raise
            inventory.quarantine.append((original.split, original.file, reason(error)))
            return None
        digest = digest_of(data)
        split = self._splitting.split_of(original.split, digest)
        image = PreparedImage(split, original.label, original.file, digest, resized)
        inventory.add(image)
        return image

    def _check_quarantine(self, images: int) -> None:
        """Raises UserError if too many of `images` images are unreadable."""
        unreadable = [row for _, inventory in sorted(self.inventories.items()) for row in inventory.quarantine]
        allowed = self.options.max_quarantined * images
        if len(unreadable) > (1 if 0 < allowed < 1 else allowed):  # one among few images, unless none is allowed
            table = self.work / QUARANTINE_TABLE
            write_table(table, ("split", "file", "reason"), unreadable)
            raise UserError(
                f"{len(unreadable):,} of {images:,} images are unreadable, more than config.data.max_quarantined="
                f"{self.options.max_quarantined:g} allows: see {table} ({unreadable[0][1]}: {unreadable[0][2]}); "
                "remove or replace them, or allow more"
            )

    def _name_shards(self) -> storage.Shards:
        """Gives the shards their final names; returns name, images and bytes of each, by split."""
        named: dict[str, list[tuple[str, int, int]]] = {}
        for split in SPLITS:
            counts = {number: self.inventories[number].split.count(split) for number in range(len(self.chunks))}
            chosen = [number for number, count in counts.items() if count]
            for index, number in enumerate(chosen):
                path = self.work / storage.final_name(split, index, len(chosen), self.storage)
                with contextlib.suppress(FileNotFoundError):  # renamed before an interruption
                    (self.work / storage.working_name(split, number, self.storage)).replace(path)
                named.setdefault(split, []).append((path.name, counts[number], path.stat().st_size))
        return named

    def _complete(self, total: Inventory, shards: storage.Shards) -> FolderInfo:
        """Writes labels, statistics, tables, info.json and the manifest. Raises UserError if a split is empty."""
        for split in ("train", "validation"):
            if split not in shards:
                shutil.rmtree(self.work)  # useless with other fractions or images
                hint = "larger" if split == "validation" else "smaller"
                raise UserError(
                    f"no image was left for the {split} split: add images or give a {hint} "
                    f"config.data.validation_fraction (it is {self.options.validation_fraction:g})"
                )
        if self.storage == "jpeg":
            storage.write_tfds_metadata(self.work, self.source.class_names, self.options.image_size, shards)
        write_tables(self.work, total, self.source.class_names)
        statistics = total.sums.statistics(total.split.count("train"))
        save_arrays(self.work, total, statistics)
        info = FolderInfo(
            source=self.fingerprint,
            content=total.content(),
            storage=self.storage,
            image_size=self.options.image_size,
            jpeg_quality=self.options.jpeg_quality,
            class_names=self.source.class_names,
            shards=shards,
            bytes=sum(size for rows in shards.values() for _, _, size in rows),
            unreadable=len(total.quarantine),
            traits={name: total.traits[name] for name in PROPERTIES if name not in RARE or total.traits[name]},
            statistics={name: value for name, value in vars(statistics).items() if name != "mean_image"},
        )
        info.write(self.work)
        names = {path.name for path in self.work.iterdir()} - {path.name for path in self._working_files()}
        write_manifest(self.work, names)
        return info

    def _working_files(self) -> list[Path]:
        """Files of the working folder that the finished one does not have."""
        return [*self.work.glob("part-*"), self.work / "plan.json"]

    def _publish(self) -> None:
        """Moves the working folder to its final place, in place of an outdated one."""
        for path in self._working_files():
            path.unlink(missing_ok=True)
        for path in (*self.work.iterdir(), self.work):
            flush(path)
        old = _old(self.directory)
        shutil.rmtree(old, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(old)
        self.work.rename(self.directory)
        flush(self.directory.parent)
        shutil.rmtree(old, ignore_errors=True)


def _exclusively(directory: Path) -> contextlib.ExitStack:
    """Locks a folder so that one process at a time prepares it; the lock of a process that dies is released."""
    lock = directory.with_name(directory.name + ".lock")
    held = acquire_lock(lock, timeout=0.0)
    if held is None:
        console.show(f"waiting for another process that is preparing {directory}")
        held = acquire_lock(lock)
    assert held is not None  # without a timeout
    return held


def _free(directory: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(directory.parent).free
