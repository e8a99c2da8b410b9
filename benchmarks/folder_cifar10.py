"""CIFAR-10 as a folder of JPEGs: time of preparation, and fraction of training time spent waiting for images.

    python -m benchmarks.folder_cifar10 CIFAR10.zip

CIFAR10.zip holds train/CLASS/*.jpg and test/CLASS/*.jpg.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

NETWORKS = {"cifar_18pct": 800, "lenet": 1600}
"""Presets, and the number of training steps of each."""


def main() -> None:
    """Prints seconds, images/s and fractions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    archive = parser.parse_args().archive
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(archive).extractall(folder)
        data = [f"--config.data.dir={folder}", f"--config.data.prepared_dir={folder}/prepared"]
        for preset, steps in NETWORKS.items():
            config = f"--config=configs/alexnet.py:folder,{preset}"
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "alexnet_jax", "prepare", config, *data], check=True)
            print(f"{preset}: ready after {time.perf_counter() - began:.1f} s")
            workdir = Path(folder) / "run" / preset
            limits = [f"--config.max_steps={steps}", "--config.eval_every_epochs=1000", f"--workdir={workdir}"]
            subprocess.run([sys.executable, "main.py", config, *data, *limits], check=True, stdout=subprocess.DEVNULL)
            timing = json.loads((workdir / "timing.jsonl").read_text().splitlines()[0])
            print(
                f"{preset}: {timing['images_per_second']:,.0f} images/s, {timing['input_share']:.1%} waiting for images"
            )


if __name__ == "__main__":
    main()
