"""What is attacked: a folder of small images, what is prepared of it, a run, weights, and the commands on them."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_jax.checkpoint import checkpoint_names, digest, restore
from benchmarks.attack import shim
from benchmarks.attack.processes import Ended, command, forked

CONFIG = (
    "--config=configs/alexnet.py:folder,lenet",
    "--config.data.dir=images",
    "--config.data.prepared_dir=data",
    "--config.data.validation_fraction=0.2",
    "--config.data.test_fraction=0.2",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=2",
    "--config.optimizer.patience=1",
    "--config.stuck_after_steps=0",
)
TRAIN = ("train", *CONFIG, "--config.epochs=3.0", "--workdir=run")
PLACES = ("--data-dir=images", "--prepared-dir=data")
WEIGHTS = ("--layout=caffe", "--config.data.mean_form=channel", "--config.data.mean=(120.0,120.0,120.0)")
SWEEP = ("--config.epochs=1.0", "--space=space.py", "--sampler=grid", "--pruner=none", "--processes=1")
SPACE = """def get_space():
    return {"optimizer.learning_rate": {"values": [0.001, 0.002]}}
"""

Products = Mapping[str, str]
"""What a command has made: digests by name."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A command that is attacked.

    Attributes:
      words: its words.
      before: the state of the folder that it starts in: "new", "half" (training was stopped) or "done".
      products: returns what it has made.
    """

    words: tuple[str, ...]
    before: str
    products: Callable[[Path, Ended], Products]


def _files(pattern: str, output: bool = False) -> Callable[[Path, Ended], Products]:
    """Digests of the files of a folder that match a pattern, and what was printed."""

    def products(folder: Path, ended: Ended) -> Products:
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and path.suffix != ".lock"]
        found = {str(path.relative_to(folder)): _digest(path.read_bytes()) for path in paths}
        return {**found, **(_printed(folder, ended) if output else {})}

    return products


def _printed(_: Path, ended: Ended) -> Products:
    return {"output": ended.output}


def _run(name: str) -> Callable[[Path, Ended], Products]:
    """The digest of the last checkpoint of a run, which is read, and of its records."""

    def products(folder: Path, _: Ended) -> Products:
        def read() -> None:
            checkpoints = folder / name / "checkpoints"
            found = restore(checkpoints, checkpoint_names(checkpoints)[-1])
            print(digest(found.tree, {**found.metadata, "versions": None}))  # the code may be committed meanwhile

        found = {"checkpoint": forked(read, folder.with_suffix(".log")).output}
        with contextlib.suppress(OSError):
            found["metrics.jsonl"] = _digest((folder / name / "metrics.jsonl").read_bytes())
        return found

    return products


TASKS = {
    "prepare": Task(("prepare", *CONFIG), "new", _files("data/**/*")),
    "prepare jpeg": Task(("prepare", *CONFIG, "--config.data.storage=jpeg"), "new", _files("data/**/*")),
    "train": Task(TRAIN, "new", _run("run")),
    "resume": Task(TRAIN, "half", _run("run")),
    "evaluate": Task(("evaluate", "run", *PLACES), "done", _files("run/evaluation/*", True)),
    "predict": Task(("predict", "run", "images/a/00.png", "images/b/01.jpg", "--json"), "done", _printed),
    "report": Task(("report", "run", *PLACES), "done", _files("run/report.html")),
    "audit": Task(("audit", "run"), "done", _printed),
    "export": Task(("export", "run", "--format=safetensors"), "done", _files("run/model.safetensors")),
    "export onnx": Task(("export", "run", "--format=onnx"), "done", _files("run/model.onnx")),
    "export stablehlo": Task(("export", "run", "--format=stablehlo"), "done", _files("run/*.zip")),
    "convert": Task(("convert", "weights.npz", *CONFIG, *WEIGHTS, "--workdir=converted"), "done", _run("converted")),
    "convert out": Task(("convert", "run", "--layout=caffe", "--output=out.npz"), "done", _files("out.npz")),
    "sweep": Task(("sweep", *CONFIG, *SWEEP, "--workdir=sweep"), "done", _files("sweep/leaderboard.csv")),
}


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A task without an attack: what it makes, how long it takes, and its file operations by kind."""

    products: Products
    seconds: float
    operations: Mapping[str, int]

    def count(self, operations: shim.Operation) -> int:
        """The number of file operations of these kinds."""
        return sum(self.operations.get(str(kind.name), 0) for kind in operations)


class Target:
    """Folders in the states that tasks start in, and what the tasks make of them.

    Attributes:
      folder: where all lies: images, the states, and the folders of tries.
      has_shim: whether file operations can be hit.
    """

    def __init__(self, folder: Path, has_shim: bool):
        """Makes the images and the states."""
        self.folder, self.has_shim = folder, has_shim
        self._undisturbed: dict[str, Undisturbed] = {}
        _draw_images(folder / "images")
        new = folder / "new"
        new.mkdir()
        (new / "images").symlink_to(folder / "images")
        (new / "space.py").write_text(SPACE)
        half = self.copy("new", "half")
        _succeed((*TRAIN, "--config.max_steps=7"), half)
        done = self.copy("new", "done")
        _succeed(TRAIN, done)
        _succeed(("convert", "run", "--layout=caffe", "--output=weights.npz"), done)
        _succeed(("convert", "run", "--layout=caffe", "--output=weights.safetensors"), done)
        _succeed(("export", "run", "--format=safetensors", "--output=run.safetensors"), done)

    def copy(self, state: str, name: str) -> Path:
        """A new folder in a state."""
        return Path(shutil.copytree(self.folder / state, self.folder / name, symlinks=True))

    def undisturbed(self, name: str) -> Undisturbed:
        """What a task makes when nothing happens to it; it is run twice and must make the same both times."""
        if name not in self._undisturbed:
            once, twice = (self._measured(TASKS[name], hit) for hit in (None, shim.COUNT if self.has_shim else None))
            if once.products != twice.products:
                raise RuntimeError(f"{name} does not make the same twice: {once.products}, {twice.products}")
            self._undisturbed[name] = twice
        return self._undisturbed[name]

    def _measured(self, task: Task, hit: shim.Hit | None) -> Undisturbed:
        folder = self.copy(task.before, "undisturbed")
        ended, counts = _succeed(task.words, folder, hit), folder.with_suffix(".counts")
        operations = json.loads(counts.read_text()) if hit else {}
        products = task.products(folder, ended)
        shutil.rmtree(folder)
        return Undisturbed(products, ended.seconds, operations)


def _succeed(words: Sequence[str], folder: Path, hit: shim.Hit | None = None) -> Ended:
    """Runs a command. Raises RuntimeError if it fails."""
    ended = command(words, folder, hit)
    if ended.status:
        raise RuntimeError(f"alexnet {' '.join(words)} ended with {ended.status}:\n{ended.output}")
    return ended


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _draw_images(folder: Path) -> None:
    """Draws 60 small images of three classes, in all formats."""
    random = np.random.default_rng(0)
    for label, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            suffix = ("png", "jpg", "webp", "bmp", "gif")[number % 5]
            pixels = random.integers(0, 128, (40, 36 + label, 3), np.uint8)
            pixels[:, :, label] += 100
            Image.fromarray(pixels).save(folder / name / f"{number:02}.{suffix}")
