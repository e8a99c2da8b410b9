"""Preparing full-size photographs: this project against Pillow, in a loop on all cores and in a TFDS builder.

    python -m pip install -r benchmarks/requirements.txt
    python -m benchmarks.prepare PHOTOGRAPHS

PHOTOGRAPHS is a folder or a tar of JPEGs, of which twenty copies are used. All write resized images of 256 x 256 pixels
as JPEG of quality 90; this project also computes the hash of each file, the mean image and the covariance of colours.
"""

import argparse
import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from alexnet_jax.data.image_folder import ImageFolder
from alexnet_jax.data.preparation import prepare
from alexnet_jax.data.storage import read_info
from alexnet_jax.experiment import make_storage_options
from alexnet_jax.system.machine import available_cores
from benchmarks.photographs import read_photographs
from configs import alexnet

COPIES, ROUNDS = 20, 3


def main() -> None:
    """Prints the images/s of each, medians of three rounds with their range, the ratios, and bytes per image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    photographs = read_photographs(parser.parse_args().photographs)
    config = alexnet.get_config("folder")
    config.data.storage = "jpeg"
    ours, pillow, builder = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, photograph in enumerate(photographs * COPIES):
            path = Path(folder) / "photographs" / f"class{number % 10}" / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph + number.to_bytes(4, "big"))
        files = sorted(Path(folder, "photographs").rglob("*.jpg"))
        for round_ in range(ROUNDS):
            directory = Path(folder) / f"ours{round_}"
            began = time.perf_counter()
            prepare(ImageFolder(f"{folder}/photographs"), make_storage_options(config.data), directory)
            ours.append(len(files) / (time.perf_counter() - began))
            out = Path(folder) / f"pillow{round_}"
            out.mkdir()
            began = time.perf_counter()
            with multiprocessing.Pool(available_cores()) as pool:
                pool.starmap(_resize, [(file, out / file.name) for file in files], chunksize=16)
            pillow.append(len(files) / (time.perf_counter() - began))
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                Resized(files, data_dir=f"{folder}/tfds{round_}", file_format="array_record").download_and_prepare()
            builder.append(len(files) / (time.perf_counter() - began))
        info = read_info(directory)
        assert info
        sizes = {"ours": info.bytes, "Pillow": sum(path.stat().st_size for path in out.iterdir())}
    for name, rates in (("ours", ours), ("Pillow on all cores", pillow), ("Pillow in a TFDS builder", builder)):
        rate, ratio = statistics.median(rates), statistics.median(ours) / statistics.median(rates)
        print(f"{name:24} {rate:6,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}); ours {ratio:.2f}x")
    for name, size in sizes.items():
        print(f"{name}: {size / len(files):,.0f} bytes per image")


class Resized(tfds.core.GeneratorBasedBuilder):
    """A data set as `tfds build` would prepare it, one image after the other."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, files: list[Path], **options: Any):
        self._files = files
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        names = sorted({path.parent.name for path in self._files})
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in self._files:
            resized = io.BytesIO()
            _resize(path, resized)
            resized.seek(0)
            yield path.name, {"image": resized, "label": path.parent.name}


def _resize(source: Path, target: Path | io.BytesIO) -> None:
    with Image.open(source) as picture:
        resized = ImageOps.fit(picture.convert("RGB"), (256, 256), Image.Resampling.BICUBIC)
    resized.save(target, format="JPEG", quality=90)


if __name__ == "__main__":
    main()
