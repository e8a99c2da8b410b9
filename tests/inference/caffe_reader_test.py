"""Caffe's files of weights, written here by the protocol buffers of Google and Caffe's field numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from alexnet_jax.errors import UserError
from alexnet_jax.inference import caffe_reader
from alexnet_jax.inference.layouts import from_layout, to_layout
from alexnet_jax.inference.weight_files import read_arrays
from tests.inference.layouts_test import network, random_params

FIELDS = {
    "Shape": [("dim", 1, "INT64", True)],
    "Blob": [
        *(
            (name, number, "INT32", False)
            for number, name in enumerate(("num", "channels", "height", "width"), start=1)
        ),
        ("data", 5, "FLOAT", True),
        ("diff", 6, "FLOAT", True),
        ("shape", 7, "Shape", False),
        ("double_data", 8, "DOUBLE", True),
    ],
    "Old": [("bottom", 2, "STRING", True), ("name", 4, "STRING", False), ("type", 5, "INT32", False)],
    "Layer": [("name", 1, "STRING", False), ("type", 2, "STRING", False), ("loss_weight", 5, "FLOAT", True)],
    "Net": [("name", 1, "STRING", False), ("layers", 2, "Old", True), ("layer", 100, "Layer", True)],
}
"""Message -> its fields: name, number, type and whether it is repeated, from Caffe's src/caffe/proto/caffe.proto."""
FIELDS["Old"].append(("blobs", 6, "Blob", True))
FIELDS["Layer"].append(("blobs", 7, "Blob", True))


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "one by one"])
def messages(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Classes of Google's protocol buffers by the names in FIELDS; repeated numbers are packed or not."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, number, kind, is_repeated in fields:
            field = described.field.add(name=name, number=number, label=3 if is_repeated else 1)
            if kind in FIELDS:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind}")
                if is_repeated and kind != "STRING":
                    field.options.packed = request.param
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in FIELDS}


def set_shape_as_now(blob: Any, shape: tuple[int, ...]) -> None:
    blob.shape.dim.extend(shape)


def set_shape_as_before_2015(blob: Any, shape: tuple[int, ...]) -> None:
    blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - len(shape)) + shape


WRITERS = {"layer": set_shape_as_now, "layers": set_shape_as_before_2015}


def network_of(messages: dict[str, Any], arrays: dict[str, np.ndarray], field: str) -> Any:
    """A NetParameter with the arrays called "layer.number", and layers without weights."""
    net = messages["Net"](name="AlexNet")
    getattr(net, field).add(name="data")
    for name, array in arrays.items():
        layer, number = name.split(".")
        if number == "0":
            holder = getattr(net, field).add(name=layer)
        blob = holder.blobs.add(data=array.ravel().tolist(), diff=[0.5])
        WRITERS[field](blob, array.shape)
    return net


ARRAYS = {
    "conv1.0": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv1.1": np.float32([0.5, -1.5]),
    "fc2.0": np.arange(300, dtype=np.float32).reshape(3, 100) / 7,
    "fc2.1": np.float32([1, 2, 3]),
}


@pytest.mark.parametrize("field", WRITERS)
def test_layers_of_now_and_of_then(field: str, messages: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "net.CaffeModel"
    path.write_bytes(network_of(messages, ARRAYS, field).SerializeToString())
    found = read_arrays(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


FILES = Path(__file__).parent / "caffe_files"
"""What `network_of` makes of ARRAYS: `layer`, packed, and `layers`, one by one."""


@pytest.mark.parametrize("field", WRITERS)
def test_files_that_do_not_change(field: str) -> None:
    found = read_arrays(FILES / f"{field}.caffemodel")
    assert {name: array.tolist() for name, array in found.items()} == {k: v.tolist() for k, v in ARRAYS.items()}


def test_doubles(messages: dict[str, Any], tmp_path: Path) -> None:
    net = messages["Net"]()
    net.layer.add(name="a").blobs.add(double_data=[1.5, 2.5]).shape.dim.append(2)
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.caffemodel")["a.0"], np.float32([1.5, 2.5]), strict=True)


def test_a_preset_of_caffe_takes_them(messages: dict[str, Any], tmp_path: Path) -> None:
    model = network("lenet")
    params = random_params(model, 28)
    net = network_of(messages, to_layout("caffe", model, 28, {"params": params}), "layers")
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    back = from_layout("caffe", model, 28, read_arrays(tmp_path / "a.caffemodel"))["params"]
    for layer, arrays in params.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(back[layer][name], array)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: content[:-5], "cut short"),
        (lambda content: content + b"\x00", "no field"),
        (lambda content: b"\x0a\x07AlexNet" + bytes(1000), "no field"),
        (lambda content: content + b"\xff" * 20, "number is cut short"),
        (lambda content: b"", "without weights"),
    ],
)
def test_damaged_files(change: Callable[[bytes], bytes], what: str, messages: dict[str, Any], tmp_path: Path) -> None:
    content = network_of(messages, ARRAYS, "layer").SerializeToString()
    (tmp_path / "a.caffemodel").write_bytes(change(content))
    with pytest.raises(UserError, match=rf"a\.caffemodel.*{what}"):
        read_arrays(tmp_path / "a.caffemodel")


def test_a_file_of_many_small_layers_is_not_read_for_ever(
    messages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caffe_reader, "MOST_FIELDS", 150)
    net = messages["Net"]()
    for _ in range(100):
        net.layer.add(name="a")
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    with pytest.raises(UserError, match="150 fields"):
        read_arrays(tmp_path / "a.caffemodel")


def test_a_blob_has_few_sides(messages: dict[str, Any], tmp_path: Path) -> None:
    net = messages["Net"]()
    net.layer.add(name="a").blobs.add(data=[1.0]).shape.dim.extend([1] * 50)
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    with pytest.raises(UserError, match="has 1 numbers"):
        read_arrays(tmp_path / "a.caffemodel")


def test_fields_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caffe_reader, "MOST_FIELDS", 1000)
    (tmp_path / "a.caffemodel").write_bytes(b"\x08\x01" * 1001)
    with pytest.raises(UserError, match="1,000 fields"):
        read_arrays(tmp_path / "a.caffemodel")


def test_numbers_that_do_not_fill_their_shape(messages: dict[str, Any], tmp_path: Path) -> None:
    net = messages["Net"]()
    net.layer.add(name="a").blobs.add(data=[1.0] * 24).shape.dim.extend([2, 3, 2, 2**40])
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    with pytest.raises(UserError, match=r"\[2, 3, 2, 1099511627776\] has 24 numbers"):
        read_arrays(tmp_path / "a.caffemodel")


def test_every_truncation_is_noticed_or_loses_whole_layers(messages: dict[str, Any], tmp_path: Path) -> None:
    content, path = network_of(messages, ARRAYS, "layer").SerializeToString(), tmp_path / "a.caffemodel"
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        try:
            found = read_arrays(path)
        except UserError:
            continue
        for name, array in found.items():
            np.testing.assert_array_equal(array, ARRAYS[name])
