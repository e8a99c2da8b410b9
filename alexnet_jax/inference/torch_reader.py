"""State dicts in PyTorch's .pth files, read without PyTorch and without running what a pickle asks for.

A .pth file contains a pickle, which is a program: unpickling it can call any function. This module only parses its
instructions (`pickletools.genops`) and interprets those that build dictionaries of tensors. Nothing that the file names
is imported or called, and a file that names anything else is rejected.

Why not a `pickle.Unpickler` with a restricted `find_class`: that controls what is called, but not time and memory. It
hashes dictionary keys, and a key of nested tuples in 300 bytes can take forever; nine bytes that name a high memo index
allocate a gigabyte.
"""

import dataclasses
import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.system import console
from alexnet_jax.system.files import open_archive

MOST_INSTRUCTIONS = 100_000
"""Most instructions of a pickle that are interpreted; AlexNet's has 500."""

NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts store the state dict beside other things; another name is found if it is alone."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_FLOATS = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": jnp.bfloat16}
_WHOLE = {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
_DTYPES = {f"torch.{name}Storage": np.dtype(kind) for name, kind in {**_FLOATS, **_WHOLE}.items()}
_DICT = "collections.OrderedDict"
_TENSOR_V1, _TENSOR = "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_GLOBALS = {_DICT, _TENSOR_V1, _TENSOR, _PARAMETER, *_DTYPES}


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a class or function in a pickle; it is never resolved."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat array in the file: its type, key and number of elements."""

    kind: str
    key: str
    length: int

    @property
    def bytes(self) -> int:
        return self.length * _DTYPES[self.kind].itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, content: bytes) -> np.ndarray:
        """The tensor as float32, from the bytes of its storage; `_call` has checked that it lies inside."""
        flat = np.frombuffer(content, _DTYPES[self.storage.kind])
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, np.float32)
        steps = [stride * flat.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False)
        return np.array(view, np.float32, order="C")


class _NoStateDictError(Exception):
    """The file is not a state dict, for the reason in the text."""


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a file written by torch.save, in the zip format or the one before PyTorch 1.6.

    The state dict may be the whole content, or lie in a dict under one of NESTED or as its only dict of tensors.

    Returns:
      The tensors by name, as float32.

    Raises UserError if the file is damaged or contains anything but tensors.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"PK\x03\x04"):
            with open_archive(path) as archive:
                return _read_archive(archive, len(content))
        return _read_legacy(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except _NoStateDictError as error:
        raise UserError(f"{path}: {error}; save only model.state_dict()") from error
    except (ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile) as error:  # of zipfile
        raise UserError(f"{path} is not a complete file of torch.save: {error}") from error


def _read_archive(archive: zipfile.ZipFile, file_bytes: int) -> dict[str, np.ndarray]:
    """Reads the zip format: data.pkl, and an uncompressed member of data/ for each storage."""
    members = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in members if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1:
        raise _NoStateDictError(f"it has {len(roots)} members named data.pkl, a file of torch.save has one")
    if roots[0] + "constants.pkl" in members:
        raise _NoStateDictError("it is a program of TorchScript")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise _NoStateDictError("its members are compressed, which torch.save never does")
    order = roots[0] + "byteorder"
    if order in members and archive.read(order) != b"little":
        raise _NoStateDictError("its numbers are big-endian")

    def load(storage: _Storage) -> bytes:
        name = f"{roots[0]}data/{storage.key}"
        if name not in members or members[name].file_size != storage.bytes:
            raise _NoStateDictError(f"{name} is missing, or of another length than its tensors say")
        return archive.read(name)

    root = _interpret(io.BytesIO(archive.read(roots[0] + "data.pkl")))
    return _arrays(root, load, file_bytes)


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    """Reads the old format: pickles of magic number, protocol, machine, tensors and storage keys; then the storages."""
    file = io.BytesIO(content)
    if not content.startswith(b"\x80") or _interpret(file) != _LEGACY_MAGIC or _interpret(file) != 1001:
        raise _NoStateDictError("it is not a file of torch.save")
    machine = _interpret(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _NoStateDictError("its numbers are big-endian")
    storages: dict[str, _Storage] = {}
    root, keys = _interpret(file, storages), _interpret(file)
    if not isinstance(keys, list) or sorted(_expect(str, key) for key in keys) != sorted(storages):
        raise _NoStateDictError("its list of storages does not fit its tensors")
    offsets: dict[str, int] = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        offsets[key] = file.tell()
        if length != storages[key].length or file.tell() + storages[key].bytes > len(content):
            raise _NoStateDictError(f"storage {key} is cut short or of another length than its tensors say")
        file.seek(storages[key].bytes, io.SEEK_CUR)
    return _arrays(root, lambda storage: content[offsets[storage.key] :][: storage.bytes], len(content))


def _arrays(root: Any, load: Callable[[_Storage], bytes], file_bytes: int) -> dict[str, np.ndarray]:
    """Finds the state dict in the root object and converts its tensors to float32 arrays by name."""
    found = _state_dict(root)
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _NoStateDictError(f"its entry {str(name)[:80]!a} is not a named tensor")
    tensors: dict[str, _Tensor] = found
    # Views may overlap, so that the tensors are together much larger than their storages.
    elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if elements > file_bytes:
        raise _NoStateDictError(f"its tensors would unpack to {elements:,} numbers, more than the file has bytes")
    return {name: tensor.array(load(tensor.storage)) for name, tensor in tensors.items()}


def _state_dict(root: Any) -> dict[Any, Any]:
    """Finds the dictionary of tensors in the root object. Raises _NoStateDictError for none, and for several."""
    entries = root if isinstance(root, dict) else {}
    candidates = [key for key, value in entries.items() if _holds_tensors(value)]
    known = [key for key in NESTED if key in candidates]
    if known or len(candidates) == 1:
        chosen = (known or candidates)[0]
        if others := [key for key in candidates if key != chosen]:
            console.show(f"the tensors under {chosen!a} are read, not those under {_listed(others)}")
        return entries[chosen]
    if candidates:
        raise _NoStateDictError(f"it holds several dictionaries of tensors, {_listed(candidates)}")
    if not _holds_tensors(root):
        raise _NoStateDictError("it holds no dictionary of tensors")
    return root


def _listed(keys: list[Any]) -> str:
    return ", ".join(map(ascii, keys))[:80]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, _Tensor) for item in value.values())


def _interpret(file: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Interprets one pickle and returns the object it builds; adds the storages that it mentions to `storages`."""
    try:
        machine = _Machine({} if storages is None else storages)
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number == MOST_INSTRUCTIONS:
                raise _NoStateDictError(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
            machine.do(opcode.name, argument)
        (result,) = machine.stack
        return result
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        # Any of these follows from an unexpected stack, memo or argument.
        raise _NoStateDictError("it is damaged, or not a file of torch.save") from error


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


class _Machine:
    """A stack machine for the pickle instructions that build dictionaries, tensors and their contents."""

    def __init__(self, storages: dict[str, _Storage]):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def do(self, name: str, argument: Any) -> None:
        """Executes one instruction; CPython's Lib/pickletools.py documents them."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _LITERALS:
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST":
                stack.append({} if name == "EMPTY_DICT" else [])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._pop()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "APPEND" | "APPENDS":
                items = self._pop(None if name == "APPENDS" else 1)
                _expect(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(None if name == "SETITEMS" else 2)
                _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_global(argument.replace(" ", ".")))
            case "INST":  # calls a class
                raise _refusal(f"an instance of {_global(argument.replace(' ', '.')).name}")
            case "STACK_GLOBAL":
                stack.append(_global(".".join(_expect(str, part) for part in self._pop(2))))
            case "BINPERSID":
                stack.append(self._storage(*_expect(tuple, stack.pop())))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(_call(_expect(_Global, function).name, _expect(tuple, arguments)))
            case "BUILD":  # sets the attribute _metadata of the dictionary, which is ignored
                _expect(dict, self._pop(1)[0])
                _expect(dict, stack[-1])
            case _:
                raise _refusal(f"the instruction {name}")

    def _pop(self, count: int | None = None) -> list[Any]:
        """Pops `count` values, or all since the last mark, in the order in which they were pushed."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise IndexError
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _storage(self, what: str, kind: _Global, key: Any, _location: str, length: int, view: None = None) -> _Storage:
        """The storage that a persistent id describes. Raises ValueError for any other id."""
        if what != "storage" or _expect(_Global, kind).name not in _DTYPES or view is not None:
            raise ValueError
        storage = _Storage(kind.name, _expect(str, key), _natural(length))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError
        return storage


def _refusal(what: str) -> _NoStateDictError:
    return _NoStateDictError(f"it asks for {ascii(what[:80])[1:-1]}, which no state dict contains; nothing was run")


def _global(name: str) -> _Global:
    """A class or function that a state dict may name. Raises _NoStateDictError for any other."""
    if name not in _GLOBALS:
        raise _refusal(name)
    return _Global(name)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """Builds what PyTorch's function of that name would return. Raises _NoStateDictError or ValueError if it cannot."""
    if name == _DICT:
        items: dict[Any, Any] = {}
        for pairs in arguments:  # none, or one list of pairs
            _set_items(items, _expect(list, pairs))
        return items
    if name == _PARAMETER:
        return _expect(_Tensor, arguments[0])
    if name not in (_TENSOR, _TENSOR_V1):
        raise _NoStateDictError(f"it calls {name}, which is not a function")
    storage, offset, shape, strides = arguments[:4]
    shape, strides = (tuple(map(_natural, _expect(tuple, sizes))) for sizes in (shape, strides))
    last = _natural(offset) + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= _expect(_Storage, storage).length:
        raise _NoStateDictError(f"a tensor of shape {shape} reaches outside its storage of {storage.length} elements")
    return _Tensor(storage, offset, shape, strides)


def _set_items(target: Any, pairs: Any) -> None:
    for key, value in pairs:
        if not isinstance(key, str | int):
            raise _NoStateDictError(f"a {type(key).__name__} is the key of a dict")
        _expect(dict, target)[key] = value


def _expect(kind: type, value: Any) -> Any:
    """Returns the value unchanged. Raises _NoStateDictError if it is not an instance of `kind`."""
    if not isinstance(value, kind):
        raise _NoStateDictError(f"it is damaged: a {kind.__name__} was expected, not a {type(value).__name__}")
    return value


def _natural(value: Any) -> int:
    """Returns a non-negative integer unchanged. Raises ValueError for anything else, or a size beyond any file's."""
    if not isinstance(value, int) or not 0 <= value < 2**48:
        raise ValueError
    return value
