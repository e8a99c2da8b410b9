"""Preparing photographs at their own size: this project against a loop of Pillow over all cores.

    python -m pip install -r benchmarks/requirements.txt
    python -m benchmarks.prepare PHOTOGRAPHS

PHOTOGRAPHS is a folder or a tar of JPEGs, which are copied twenty times over. Both write squares of 256 pixels as JPEG
of quality 90; this project also takes the hash of each file, the mean image and the colours' covariance.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageOps

from alexnet_jax.datasets import _get_source
from alexnet_jax.experiment import make_storing
from alexnet_jax.machine import available_cores
from alexnet_jax.preparation import prepare, read_info
from benchmarks.photographs import read_photographs
from configs import alexnet

COPIES, ROUNDS = 20, 5


def main() -> None:
    """Prints images/s of both, medians of five rounds with their spread, the ratio and bytes an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    photographs = read_photographs(parser.parse_args().photographs)
    config = alexnet.get_config("folder")
    config.data.storage = "jpeg"
    ours, pillow = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, photograph in enumerate(photographs * COPIES):
            path = Path(folder) / "photographs" / f"class{number % 10}" / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph + number.to_bytes(4, "big"))
        files = sorted(Path(folder, "photographs").rglob("*.jpg"))
        for round_ in range(ROUNDS):
            directory = Path(folder) / f"ours{round_}"
            began = time.perf_counter()
            prepare(_get_source("folder", f"{folder}/photographs", "", 0), make_storing(config.data), directory)
            ours.append(len(files) / (time.perf_counter() - began))
            out = Path(folder) / f"pillow{round_}"
            out.mkdir()
            began = time.perf_counter()
            with multiprocessing.Pool(available_cores()) as pool:
                pool.starmap(_square, [(file, out / file.name) for file in files], chunksize=16)
            pillow.append(len(files) / (time.perf_counter() - began))
        info = read_info(directory)
        assert info
        sizes = {"ours": info["bytes"], "Pillow": sum(path.stat().st_size for path in out.iterdir())}
    for name, rates in (("ours", ours), ("Pillow", pillow)):
        rate, bytes_ = statistics.median(rates), sizes[name] / len(files)
        print(f"{name:7} {rate:6,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}), {bytes_:,.0f} bytes an image")
    print(f"ratio {statistics.median(ours) / statistics.median(pillow):.2f}")


def _square(source: Path, target: Path) -> None:
    with Image.open(source) as picture:
        ImageOps.fit(picture.convert("RGB"), (256, 256), Image.Resampling.BICUBIC).save(target, quality=90)


if __name__ == "__main__":
    main()
