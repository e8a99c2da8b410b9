"""Processes that train one network together, on one machine or many: who writes, what all agree on, who hangs.

Process 0 alone reads and writes the run's folder. Every other function of this file is called by all processes at the
same place of the program. With one process, all of it does next to nothing.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alexnet_jax.errors import LostProcessError, UserError


@contextlib.contextmanager
def session(config: ConfigDict) -> Iterator[None]:
    """Joins the processes that `config.parallel` names, if it names any, and leaves them in the end.

    An error of one process must end it at once, so that the others, which wait for it, notice: it prints its message
    and does not return. Raises UserError if there is no one to join.
    """
    if not config.coordinator:
        yield
        return
    _join(config)
    try:
        yield
    except SystemExit:
        jax.distributed.shutdown()  # all stop at the same step
        raise
    except BaseException as error:
        _leave(error)
    jax.distributed.shutdown()


def _join(config: ConfigDict) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the run
    address = None if config.coordinator == "auto" else config.coordinator
    try:
        jax.distributed.initialize(
            address,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout_seconds,
            heartbeat_timeout_seconds=2 * config.timeout_seconds,  # a Watchdog speaks more clearly
        )
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        hint = (
            "in no cluster that JAX knows, give config.parallel.coordinator=HOST:PORT, num_processes and process_id"
            if address is None
            else f"is process 0 running there, with {config.num_processes} processes in all, and is the port free?"
        )
        raise UserError(f"config.parallel.coordinator={config.coordinator!r}: {reason}; {hint}") from error


def _leave(error: BaseException) -> NoReturn:
    """Ends this process without waiting for the others, which may wait for it."""
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        error = LostProcessError(f"another process of this run has ended ({str(error).splitlines()[0][:100]})")
    if isinstance(error, UserError):
        print(f"error: process {jax.process_index()}: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_main():
        time.sleep(1)  # others that end for the same reason lose their connection with it
    os._exit(error.exit_code if isinstance(error, UserError) else 1)


def count() -> int:
    """Number of processes."""
    return jax.process_count()


def is_main() -> bool:
    """Whether this is the process that reads and writes the run's folder."""
    return jax.process_index() == 0


def any_of_them(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(flag) if count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Work that each process does for itself: if it fails in one with a UserError, it fails in all."""
    try:
        yield
    except UserError:
        any_of_them(True)
        raise
    if any_of_them(False):
        raise LostProcessError("another process of this run could not go on; its own message says why")


def check_same(what: str, value: Any) -> None:
    """Raises UserError if a value that JSON can hold is not the same in all processes."""
    if count() > 1:
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        others = [number for number, other in enumerate(digests) if not np.array_equal(other, digests[0])]
        if others:
            raise UserError(f"process {others[0]} has other {what} than process 0; give all the same")


def from_main(read: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """What process 0 reads: a tree of arrays (nested dicts, or None) and data that JSON can hold, in all processes.

    If it fails there with a UserError, it fails in all.
    """
    if count() == 1:
        return read()
    tree, data = None, None
    with together():
        if is_main():
            tree, data = read()
    described = jax.tree.map(lambda leaf: [str(leaf.dtype), list(leaf.shape)], tree)
    described, data = json.loads(_text_from_main(json.dumps([described, data])))
    if described is None:
        return None, data
    if not is_main():
        is_leaf = lambda node: isinstance(node, list)  # noqa: E731
        tree = jax.tree.map(lambda leaf: np.empty(leaf[1], leaf[0]), described, is_leaf=is_leaf)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree)), data


def _text_from_main(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data))))
    return multihost_utils.broadcast_one_to_all(np.resize(data, size)).tobytes().decode()


def on_main(make: Callable[[], Any]) -> Any:
    """What process 0 alone has; in the others a stand-in whose methods do nothing."""
    return make() if is_main() else _Nothing()


class _Nothing:
    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **named: None


class Watchdog:
    """Ends this process if all of them together have not got further for some time: then one of them hangs."""

    def __init__(self, seconds: float, advice: str):
        """`advice` is what the message ends with."""
        self._seconds, self._advice, self._place = seconds, advice, "the first step"
        self._seen, self._done = time.monotonic(), threading.Event()

    def __enter__(self) -> "Watchdog":
        if count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def progress(self, place: str) -> None:
        """Tells that all processes got as far as this."""
        self._seen, self._place = time.monotonic(), place

    def _watch(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 1)):
            if time.monotonic() - self._seen > self._seconds:
                _leave(
                    LostProcessError(
                        f"no progress for {self._seconds:g} s (config.parallel.timeout_seconds) after {self._place}: "
                        f"another process of this run hangs or its machine is gone. {self._advice}"
                    )
                )
