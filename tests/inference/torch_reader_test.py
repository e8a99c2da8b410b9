"""PyTorch's files are parsed, and nothing in them is run."""

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alexnet_jax.errors import UserError
from alexnet_jax.inference.weight_files import read_arrays, write_arrays

DATA = Path(__file__).parent / "torch_files"
"""Made by torch 2.13: state dicts of a convolution and a linear layer, and of tensors of many kinds."""


def counting(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_a_state_dict(name: str) -> None:
    arrays = read_arrays(DATA / f"{name}.pth")
    expected = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (2, 6), "fc.bias": (2,)}
    assert {key: array.shape for key, array in arrays.items()} == expected
    for array in arrays.values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, counting(*array.shape) / 8)


@pytest.mark.parametrize("name", ["odd-zip", "odd-legacy"])
def test_views_types_and_names(name: str) -> None:
    arrays = read_arrays(DATA / f"{name}.pth")
    expected = {
        "transposed": counting(4, 6).T,
        "part": counting(24)[5:17:3],
        "half": counting(4) / 2,
        "bfloat16": counting(4) / 4,
        "int": np.float32(7),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": counting(3),
    }
    assert arrays.keys() == expected.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], strict=True)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name_of(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tensor(offset: int = 0, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), count: int = 4) -> bytes:
    """A tensor with the storage "0" of floats."""
    storage = (
        b"(" + text("storage") + name_of("torch", "FloatStorage") + text("0") + text("cpu") + number(count) + b"tQ"
    )
    rest = number(offset) + numbers(*size) + numbers(*stride) + b"\x89" + name_of("collections", "OrderedDict") + b")R"
    return name_of("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + rest + b"tR"


def program(value: bytes, key: bytes = text("weight")) -> bytes:
    """A pickle of a dict with one entry."""
    return b"\x80\x02}(" + key + value + b"u."


def archive(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED, storage: bytes = bytes(16)) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/data/0", storage)
    return path


def in_zip(path: Path, content: bytes) -> Path:
    return archive(path, content)


def in_legacy(path: Path, content: bytes) -> Path:
    magic = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
    system = b"\x80\x02}" + text("little_endian") + b"\x88s."
    keys = b"\x80\x02]" + text("0") + b"a."
    path.write_bytes(magic + b"\x80\x02M\xe9\x03." + system + content + keys + struct.pack("<q", 4) + bytes(16))
    return path


WRITERS = [in_zip, in_legacy]
Writer = Callable[[Path, bytes], Path]


@pytest.mark.parametrize("write", WRITERS)
def test_the_hand_made_files_are_valid_but_for_what_is_tested(write: Writer, tmp_path: Path) -> None:
    arrays = read_arrays(write(tmp_path / "a.pth", program(tensor())))
    np.testing.assert_array_equal(arrays["weight"], np.zeros(4), strict=False)
    moved = read_arrays(write(tmp_path / "b.pth", program(tensor(1, (3, 1), (1, 9)))))
    assert moved["weight"].shape == (3, 1)


def attacks(target: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would create a file if they were run, with the expected messages."""
    make = text(f"touch {target}")
    code = text(f"open({str(target)!r}, 'w')")
    return {
        "global": (name_of("os", "system") + make + b"\x85R", "os.system"),
        "stack-global": (text("os") + text("system") + b"\x93" + make + b"\x85R", "os.system"),
        "eval": (name_of("builtins", "eval") + code + b"\x85R", "builtins.eval"),
        "inst": (b"(" + make + b"ios\nsystem\n", "os.system"),
        "inst-of-a-known-name": (b"(" + make + b"icollections\nOrderedDict\n", "instance"),
        "obj": (b"(" + name_of("os", "system") + make + b"o", "os.system"),
        "newobj": (name_of("subprocess", "Popen") + make + b"\x85\x81", "subprocess.Popen"),
        "build": (name_of("argparse", "Namespace") + b")R}" + text("x") + make + b"sb", "argparse.Namespace"),
        "in-a-module-of-torch": (name_of("torch", "load") + make + b"\x85R", "torch.load"),
        "dotted": (name_of("torch", "serialization.os.system") + make + b"\x85R", "torch.serialization.os.system"),
        "behind-a-memo": (name_of("os", "system") + b"q\x01" + b"h\x01" + make + b"\x85R", "os.system"),
        "never-called": (name_of("os", "system"), "os.system"),
        "with-escapes": (name_of("os\x1b[2J", "system"), r"os\x1b[2J.system"),
        "extension": (b"\x82\x01", "EXT1"),
        "persistent-name": (b"Pos.system\n", "PERSID"),
        "calls-a-storage": (name_of("torch", "FloatStorage") + make + b"\x85R", "not a function"),
        "builds-a-tensor": (tensor() + b"}b", "a dict was expected"),
    }


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("attack", attacks(Path()))
def test_a_planted_program_is_refused_and_does_nothing(attack: str, write: Writer, tmp_path: Path) -> None:
    target = tmp_path / "planted"
    value, named = attacks(target)[attack]
    path = write(tmp_path / "evil.pth", program(value))
    with pytest.raises(UserError) as caught:
        read_arrays(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and named in message and message.isprintable()
    assert not target.exists()


@pytest.mark.parametrize("attack", ["global", "stack-global", "eval", "inst", "behind-a-memo"])
def test_the_planted_programs_are_programs(attack: str, tmp_path: Path) -> None:
    """PyTorch's own reader runs these pickles; otherwise the test above would prove nothing."""
    value, _ = attacks(tmp_path)[attack]
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(program(value))]
    assert {"REDUCE", "INST"} & set(opcodes) and opcodes[-1] == "STOP"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "view",
    [
        {"offset": 1},
        {"offset": -1},
        {"size": (5,)},
        {"stride": (2,)},
        {"stride": (-1,)},
        {"stride": (0,), "size": (2**40,)},
        {"size": (2, 2), "stride": (1,)},
        {"size": (2, 3), "stride": (2, 1)},
        {"size": (2**60,), "count": 2**60},
        {"size": (2**40,), "count": 2**40},
        {"size": (8,), "count": 8},
        {"size": (1,) * 100, "stride": (1,) * 100},
        {"count": -4},
    ],
    ids=str,
)
def test_a_tensor_lies_within_its_storage(view: dict[str, object], write: Writer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_arrays(write(tmp_path / "evil.pth", program(tensor(**view))))  # type: ignore[arg-type]


def test_many_views_of_one_storage_do_not_fill_the_memory(tmp_path: Path) -> None:
    shared = tensor(size=(2**19,), count=2**19) + b"q\x01"
    entries = b"".join(text(f"weight{number}") + b"h\x01" for number in range(2000))
    path = archive(tmp_path / "a.pth", b"\x80\x02}(" + text("first") + shared + entries + b"u.", storage=bytes(2**21))
    with pytest.raises(UserError, match="unpack to"):
        read_arrays(path)


def test_a_key_is_a_name(tmp_path: Path) -> None:
    deep = b")" + b"\x85" * 90_000  # its hash would overflow the stack of the interpreter
    with pytest.raises(UserError, match="key"):
        read_arrays(in_zip(tmp_path / "a.pth", program(b"N", key=deep)))
    with pytest.raises(UserError, match="'7'"):
        read_arrays(in_zip(tmp_path / "a.pth", program(tensor(), key=b"K\x07")))


def test_a_program_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instructions"):
        read_arrays(in_zip(tmp_path / "a.pth", program(b"(" * 100_000 + tensor())))


def test_two_dictionaries_of_tensors_are_not_guessed_between(tmp_path: Path) -> None:
    inner = b"}(" + text("weight") + tensor() + b"u"
    whole = b"\x80\x02}(" + text("generator") + inner + text("critic") + inner + b"u."
    with pytest.raises(UserError, match="'generator', 'critic'"):
        read_arrays(in_zip(tmp_path / "a.pth", whole))


def test_tensors_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As torchvision's reference scripts save a network beside its moving average."""
    inner = b"}(" + text("weight") + tensor() + b"u"
    whole = b"\x80\x02}(" + text("model_ema") + inner + text("model") + inner + b"u."
    assert read_arrays(in_zip(tmp_path / "a.pth", whole)).keys() == {"weight"}
    assert "under 'model' are read, not those under 'model_ema'" in capsys.readouterr().out


def test_a_program_of_torchscript_is_called_so(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", program(tensor()))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/constants.pkl", b"")
    with pytest.raises(UserError, match="TorchScript"):
        read_arrays(path)


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "weights_of_mine"])
def test_a_state_dict_within_a_checkpoint(key: str, tmp_path: Path) -> None:
    """As training scripts save it: from DataParallel, beside other objects."""
    inner = b"}(" + text("module.weight") + tensor() + text("module.bias") + tensor() + b"u"
    whole = b"\x80\x02}(" + text("epoch") + b"K\x07" + text(key) + inner + text("args") + b"}u."
    assert read_arrays(in_zip(tmp_path / "a.pth", whole)).keys() == {"weight", "bias"}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02N.",
        b"\x80\x02}.",
        b"\x80\x02t.",
        b"\xff",
        program(b"N"),
    ],
)
def test_a_broken_program_is_refused(content: bytes, write: Writer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.pth"):
        read_arrays(write(tmp_path / "a.pth", content))


@pytest.mark.parametrize("name", ["zip", "legacy", "odd-legacy"])
def test_every_truncation_is_noticed(name: str, tmp_path: Path) -> None:
    content, path = (DATA / f"{name}.pth").read_bytes(), tmp_path / "a.pth"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a\.pth"):
            read_arrays(path)


def test_a_changed_byte_of_the_numbers_is_noticed(tmp_path: Path) -> None:
    path, content = tmp_path / "a.pth", bytearray((DATA / "zip.pth").read_bytes())
    with zipfile.ZipFile(DATA / "zip.pth") as file:
        member = next(member for member in file.infolist() if member.filename.endswith("data/0"))
    content[content.index(struct.pack("<4f", 0, 0.125, 0.25, 0.375), member.header_offset) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="CRC"):
        read_arrays(path)


def test_zip_bombs(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.pth", program(tensor()), zipfile.ZIP_DEFLATED, storage=bytes(2**27))
    with pytest.raises(UserError, match="unpack to"):
        read_arrays(bomb)
    with pytest.raises(UserError, match="compressed"):
        read_arrays(archive(tmp_path / "b.pth", program(tensor()), zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="unpack to"):
        read_arrays(bomb.rename(tmp_path / "a.npz"))


def npy(header: str, content: bytes = b"") -> bytes:
    head = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


@pytest.mark.parametrize(
    ("header", "content"),
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n."),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", bytes(4)),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", bytes(4)),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(4)),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        ("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }", bytes(4)),
        ("__import__('os').system('true')", bytes(4)),
    ],
)
def test_an_npz_holds_numbers_alone(header: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weight.npy", npy(header, content))
    with pytest.raises(UserError, match=r"a\.npz"):
        read_arrays(path)


def test_arrays_of_other_formats(tmp_path: Path) -> None:
    arrays = {"a": counting(2, 3).T, "b": np.float64([0.5]), "c": np.array(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "c.safetensors")
    for path in tmp_path.iterdir():
        found = read_arrays(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            expected = array.astype(np.float32) if path.suffix == ".npz" or array.ndim else np.float32([3])
            np.testing.assert_array_equal(found[name], expected, strict=True)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_what_is_written_is_read(suffix: str, tmp_path: Path) -> None:
    path, arrays = tmp_path / f"a.{suffix}", {"x": counting(2, 3, 4).T, "y": counting(1)}
    write_arrays(path, arrays)
    for name, array in read_arrays(path).items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=path.name):
        read_arrays(path)


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    content = io.BytesIO()
    np.save(content, counting(3))
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x.npy", content.getvalue())
        file.writestr("x.npy", content.getvalue())
    with pytest.raises(UserError, match="one name"):
        read_arrays(path)


def test_a_wrong_path(tmp_path: Path) -> None:
    for name in ("a.pth", "a.npz", "a.safetensors", "a.h5", "a"):
        with pytest.raises(UserError, match=name):
            read_arrays(tmp_path / name)
    with pytest.raises(UserError, match=r"\.safetensors or \.npz"):
        write_arrays(tmp_path / "a.pth", {})
    (tmp_path / "b.pth").write_bytes(zlib.compress(b"what"))
    with pytest.raises(UserError, match=r"b\.pth"):
        read_arrays(tmp_path / "b.pth")


def test_a_name_that_would_grow_without_end_is_refused(tmp_path: Path) -> None:
    grown = b")" + b"q\x00h\x00\x86" * 16  # each time a pair of two of the one before
    archive(tmp_path / "a.pth", program(tensor().replace(text("0"), grown, 1)))
    whole, keys = in_legacy(tmp_path / "b.pth", program(tensor())).read_bytes(), b"\x80\x02]" + text("0") + b"a."
    (tmp_path / "b.pth").write_bytes(whole.replace(keys, b"\x80\x02]" + grown + b"a."))
    for name in "ab":
        with pytest.raises(UserError, match=r"str.* tuple"):
            read_arrays(tmp_path / f"{name}.pth")


def test_whatever_a_reader_raises_is_one_line(tmp_path: Path) -> None:
    head = b'{"x":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    for name, header in {"b": "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", "c": "-" * 9000}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as file:
            file.writestr("x.npy", npy(header, bytes(4)))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("x.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", bytes(4)))
    encrypted = bytearray((tmp_path / "d.npz").read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "d.npz").write_bytes(encrypted)
    for name in ("a.safetensors", "b.npz", "c.npz", "d.npz"):
        with pytest.raises(UserError, match=rf"{name}"):
            read_arrays(tmp_path / name)
