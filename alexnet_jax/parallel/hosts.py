"""Processes that train one network together, on one machine or many: who writes, what all agree on, who hangs.

Process 0 alone reads and writes the run's folder. Every other function of this file is called by all processes at the
same place of the program. With one process, all of it does next to nothing.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alexnet_jax.errors import LostProcessError, UserError
from alexnet_jax.system.signals import Terminated

_LOST = re.compile("gloo|nccl|connection|coordination|UNAVAILABLE|DEADLINE_EXCEEDED", re.IGNORECASE)
"""What JAX's errors speak of when a process that others wait for is gone."""


@contextlib.contextmanager
def session(config: ConfigDict) -> Iterator[None]:
    """Joins the processes that `config.parallel` names, if it names any, and leaves them in the end.

    An error of one process must end it at once, so that the others, which wait for it, notice: it prints its message
    and does not return. Raises UserError if there is no one to join.
    """
    if not config.coordinator:
        yield
        return
    with _gives_up(config):
        _join(config)
        try:
            any_of_them(False)  # connects all now: later, gloo lets the first to come wait half a minute at most
        except jax.errors.JaxRuntimeError as error:
            _end(f"{_at(config)}: the processes met there but cannot talk to each other ({_brief(error)})", 2, True)
    try:
        yield
    except SystemExit:
        jax.distributed.shutdown()  # all stop at the same step
        raise
    except BaseException as error:
        _leave(error)
    jax.distributed.shutdown()


@contextlib.contextmanager
def _gives_up(config: ConfigDict) -> Iterator[None]:
    """Ends this process in time and in one line if the others do not come: JAX would abort it with a stack trace."""
    missing = (
        f"{_at(config)}: not all processes have met there within {config.timeout_seconds} s "
        "(config.parallel.timeout_seconds); has each been started, with the same address and number of processes, and "
        "can its machine reach that address?"
    )
    timer = threading.Timer(config.timeout_seconds, _end, [missing, 2, True])
    timer.daemon = True
    timer.start()
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would wait as well
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        timer.cancel()


def _join(config: ConfigDict) -> None:
    """Raises UserError if neither config nor cluster says whom to join, or process 0 cannot listen at its port."""
    if config.process_id == 0 and config.coordinator != "auto":
        _check_port(config)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the run
    try:
        jax.distributed.initialize(
            None if config.coordinator == "auto" else config.coordinator,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout_seconds + 60,  # `_gives_up` speaks first
            heartbeat_timeout_seconds=2 * config.timeout_seconds,  # a Watchdog speaks more clearly
            shutdown_timeout_seconds=config.timeout_seconds,
        )
    except (ValueError, TypeError) as error:
        advice = "Outside a cluster that JAX knows, give coordinator=HOST:PORT, num_processes and process_id"
        raise UserError(f"{_at(config)}: {_brief(error)} {advice}") from error
    except RuntimeError as error:
        raise UserError(f"{_at(config)}: {_brief(error)}; is the port of process 0 free?") from error


def _check_port(config: ConfigDict) -> None:
    """Raises UserError if process 0 cannot listen at its port; JAX may then end with a segmentation fault."""
    try:
        socket.create_server(("", int(config.coordinator.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{_at(config)}: process 0 cannot listen at this port ({reason}); try another") from error


def _at(config: ConfigDict) -> str:
    return f"config.parallel.coordinator={config.coordinator!r}"


def _brief(error: BaseException) -> str:
    """The first line of an error of JAX, without its kind and places in the source."""
    line = re.sub(r"^[A-Z_]+: |\[external/\S+\] ", "", str(error).partition("\n")[0])
    return textwrap.shorten(line, 200, placeholder=" ...")


def _leave(error: BaseException) -> NoReturn:
    """Ends this process without waiting for the others, which may wait for it."""
    status, text = 1, "failed"
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
        error = LostProcessError(f"another process of this run has ended, see its own message ({_brief(error)})")
    if isinstance(error, UserError):
        status, text = error.exit_code, str(error)
    elif isinstance(error, KeyboardInterrupt):
        status, text = (143, "terminated") if isinstance(error, Terminated) else (130, "interrupted")
    else:
        traceback.print_exception(error)
    _end(f"process {jax.process_index()}: {text}", status, linger=is_main())


def _end(message: str, status: int, linger: bool = False) -> NoReturn:
    """Says why and exits, without JAX's farewell, which waits for the others; at once, or two seconds later.

    Process 0 should linger: when it is gone, JAX aborts the others, with a stack trace for a message.
    """
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(2 if linger else 0)
    os._exit(status)


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


def on_main(kind: Callable[..., Any], *args: Any) -> Any:
    """An object of a class that process 0 alone has; in the others a stand-in whose methods return None."""
    return kind(*args) if is_main() else _StandIn(kind)


class _StandIn(contextlib.AbstractContextManager["_StandIn"]):
    """Has the methods of a class, which do nothing and return None, and no other attribute."""

    def __init__(self, kind: Any):
        self._kind = kind

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not callable(getattr(self._kind, name, None)):
            raise AttributeError(f"a stand-in for {self._kind.__name__} has no {name}")
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

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def progress(self, place: str) -> None:
        """Tells that all processes got as far as this."""
        self._seen, self._place = time.monotonic(), place

    def _watch(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 1)):
            if time.monotonic() - self._seen > self._seconds:
                text = f"no progress for {self._seconds:g} s (config.parallel.timeout_seconds) after {self._place}: "
                text += f"another process of this run hangs or its machine is gone. {self._advice}"
                _leave(LostProcessError(text))
