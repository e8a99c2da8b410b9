"""Files of weights under the names, and with the names of arrays, that they have in practice."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alexnet_jax.errors import UserError
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.inference.weight_files import read_arrays
from alexnet_jax.system.files import other_content

TORCH_FILES = Path(__file__).parent / "torch_files"
ARRAYS = {"features.0.weight": np.float32([1, 2]), "classifier.6.bias": np.float32([3])}


@pytest.mark.parametrize("name", ["a.pth.tar", "pytorch_model.bin", "last.ckpt", "A.PTH", "A.Pt", "a", "a.npz"])
@pytest.mark.parametrize("source", ["zip", "legacy"])
def test_the_content_of_a_file_of_pytorch_decides(source: str, name: str, tmp_path: Path) -> None:
    shutil.copy(TORCH_FILES / f"{source}.pth", tmp_path / name)
    assert read_arrays(tmp_path / name).keys() == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", ["a.bin", "a.NPZ", "a.SafeTensors", "a"])
def test_the_content_of_other_files_decides(name: str, tmp_path: Path) -> None:
    for form in ("npz", "safetensors"):
        np.savez(tmp_path / "x.npz", **ARRAYS)
        save_file(ARRAYS, tmp_path / "x.safetensors")
        (tmp_path / f"x.{form}").rename(tmp_path / name)
        assert read_arrays(tmp_path / name).keys() == ARRAYS.keys()


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a"])
def test_other_content_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=rf"{name} is none of .*\.caffemodel"):
        read_arrays(tmp_path / name)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "net.", "encoder.", "backbone.", "student.", "_orig_mod.", "module.model."),
        "model._orig_mod.",
    ],
)
def test_prefixes_of_programs_around_the_network(prefix: str, tmp_path: Path) -> None:
    save_file({prefix + name: array for name, array in ARRAYS.items()}, tmp_path / "a.safetensors")
    assert read_arrays(tmp_path / "a.safetensors").keys() == ARRAYS.keys()


def test_the_features_alone_in_data_parallel(tmp_path: Path) -> None:
    """As the ImageNet example of PyTorch trains AlexNet."""
    save_file({name.replace("features.", "features.module."): ARRAYS[name] for name in ARRAYS}, tmp_path / "a")
    assert read_arrays(tmp_path / "a").keys() == ARRAYS.keys()


def test_names_that_would_become_one_stay(tmp_path: Path) -> None:
    arrays = {"module.weight": np.ones(2, np.float32), "weight": np.zeros(2, np.float32)}
    save_file(arrays, tmp_path / "a")
    assert read_arrays(tmp_path / "a").keys() == arrays.keys()


def test_a_part_of_the_network_alone_keeps_its_names(tmp_path: Path) -> None:
    names = {"model.features.0.weight", "model.features.0.bias"}
    save_file(dict.fromkeys(names, np.ones(2, np.float32)), tmp_path / "a")
    assert read_arrays(tmp_path / "a").keys() == {name.removeprefix("model.") for name in names}


@pytest.mark.parametrize(
    ("start", "what"), [("<!DOCTYPE html>", "HTML"), ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull")]
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.npz", "a.caffemodel"])
def test_a_failed_download_is_told(name: str, start: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(start)
    with pytest.raises(UserError, match=f"{name} is .*{what}"):
        read_arrays(tmp_path / name)


@pytest.mark.parametrize("start", [b"\n<AlexNet", b" <\0\0\0\0\0\0{"], ids=["Caffe", "safetensors"])
def test_a_length_of_60_is_no_page(start: bytes) -> None:
    assert other_content(start) == ""


def test_a_command_that_needs_a_run_says_how_to_make_one() -> None:
    with pytest.raises(UserError, match=r"zip\.pth .*alexnet convert"):
        load_run(TORCH_FILES / "zip.pth")


@pytest.mark.parametrize("name", ["e.npz", "e.safetensors"])
def test_a_file_without_arrays_is_read_as_none(name: str, tmp_path: Path) -> None:
    save_file({}, tmp_path / name) if name == "e.safetensors" else np.savez(tmp_path / name)
    assert read_arrays(tmp_path / name) == {}
