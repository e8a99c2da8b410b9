"""Several processes that train one network, on one or more machines: joining, agreement, and detection of failures.

Only process 0 reads and writes the run folder. All processes must call the functions of this module at the same point
of the program. With a single process they do almost nothing.
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

from alexnet_jax.errors import LostProcessError, Terminated, UserError
from alexnet_jax.system import console

_LOST = re.compile("gloo|nccl|connection|coordination|UNAVAILABLE|DEADLINE_EXCEEDED", re.IGNORECASE)
"""Words in JAX's errors that mean that another process has been lost."""


@contextlib.contextmanager
def session(config: ConfigDict) -> Iterator[None]:
    """Context in which this process has joined the others of the run, if `config.parallel.coordinator` is set.

    An exception inside ends this process at once, with its message on stderr, because the others wait for it and must
    notice. Raises UserError if the processes cannot be joined.
    """
    if not config.coordinator:
        yield
        return
    with _time_limit(config):
        _join(config)
        try:
            any_process(False)  # connects all now; later, gloo would wait for the others only half a minute
        except jax.errors.JaxRuntimeError as error:
            _end(f"{_at(config)}: the processes have joined but cannot communicate ({_brief(error)})", 2, True)
    try:
        yield
    except SystemExit:
        jax.distributed.shutdown()  # all processes stop at the same step
        raise
    except BaseException as error:
        _leave(error)
    jax.distributed.shutdown()


@contextlib.contextmanager
def _time_limit(config: ConfigDict) -> Iterator[None]:
    """Ends this process with one line if the others do not join in time; JAX would abort with a stack trace."""
    missing = (
        f"{_at(config)}: not all processes have joined within {config.timeout_seconds} s "
        "(config.parallel.timeout_seconds); check that each was started with the same address and number of processes, "
        "and that its machine can reach that address"
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
    """Initialises `jax.distributed`. Raises UserError without an address, or if process 0 cannot listen on its port."""
    if config.process_id == 0 and config.coordinator != "auto":
        _check_port(config)
    jax.config.update("jax_enable_preemption_service", False)  # it would intercept SIGTERM
    try:
        jax.distributed.initialize(
            None if config.coordinator == "auto" else config.coordinator,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout_seconds + 60,  # `_time_limit` reports first
            heartbeat_timeout_seconds=2 * config.timeout_seconds,  # the Watchdog reports first
            shutdown_timeout_seconds=config.timeout_seconds,
        )
    except (ValueError, TypeError) as error:
        advice = "Outside a cluster that JAX detects, give coordinator=HOST:PORT, num_processes and process_id"
        raise UserError(f"{_at(config)}: {_brief(error)} {advice}") from error
    except RuntimeError as error:
        raise UserError(f"{_at(config)}: {_brief(error)}; check that the port of process 0 is free") from error


def _check_port(config: ConfigDict) -> None:
    """Raises UserError if process 0 cannot listen on its port; JAX might end with a segmentation fault."""
    try:
        socket.create_server(("", int(config.coordinator.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{_at(config)}: process 0 cannot listen on this port ({reason}); try another") from error


def _at(config: ConfigDict) -> str:
    return f"config.parallel.coordinator={config.coordinator!r}"


def _brief(error: BaseException) -> str:
    """The first line of a JAX error, without its status code and source locations."""
    line = re.sub(r"^[A-Z_]+: |\[external/\S+\] ", "", str(error).partition("\n")[0])
    return textwrap.shorten(line, 200, placeholder=" ...")


def _leave(error: BaseException) -> NoReturn:
    """Ends this process after an error, without waiting for the others, which may be waiting for it."""
    status, text = 1, "failed"
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
        error = LostProcessError(f"another process of this run has ended; see its message ({_brief(error)})")
    if isinstance(error, UserError):
        status, text = error.exit_code, str(error)
    elif isinstance(error, KeyboardInterrupt):
        status, text = (143, "terminated") if isinstance(error, Terminated) else (130, "interrupted")
    else:
        traceback.print_exception(error)
    _end(f"process {jax.process_index()}: {text}", status, linger=is_main())


def _end(message: str, status: int, linger: bool = False) -> NoReturn:
    """Prints an error and exits without JAX's shutdown, which would wait for the other processes.

    Args:
      message: the text of the error.
      status: the exit status.
      linger: wait two seconds first. Process 0 should: once it is gone, JAX aborts the others with a stack trace.
    """
    print("error:", console.printable(message, keep="\n"), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(2 if linger else 0)
    os._exit(status)


def count() -> int:
    """The number of processes of the run."""
    return jax.process_count()


def is_main() -> bool:
    """Whether this is process 0, which reads and writes the run folder."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is true in any process."""
    return bool(flag) if count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Context for work that each process does separately: a UserError in one process raises an error in all."""
    try:
        yield
    except UserError:
        any_process(True)
        raise
    if any_process(False):
        raise LostProcessError("another process of this run has failed; see its message")


def check_same(what: str, value: Any) -> None:
    """Raises UserError if a value differs between processes.

    Args:
      what: names the value in the error, like "settings".
      value: plain data that JSON can hold.
    """
    if count() > 1:
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        others = [number for number, other in enumerate(digests) if not np.array_equal(other, digests[0])]
        if others:
            raise UserError(f"process {others[0]} has other {what} than process 0; give all processes the same")


def from_main(read: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Reads on process 0 and broadcasts the result to all processes; a UserError there raises an error in all.

    Args:
      read: returns a tree of arrays (nested dicts, or None) and plain data that JSON can hold.
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
    """Creates an object on process 0; on the others a stand-in for its class, whose methods return None."""
    return kind(*args) if is_main() else _StandIn(kind)


class _StandIn(contextlib.AbstractContextManager["_StandIn"]):
    """Has the methods of a class, all of which do nothing and return None, and no other attributes."""

    def __init__(self, kind: Any):
        self._kind = kind

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not callable(getattr(self._kind, name, None)):
            raise AttributeError(f"a stand-in for {self._kind.__name__} has no {name}")
        return lambda *args, **named: None


class Watchdog:
    """Ends this process if the run has made no progress for some time, because another process hangs."""

    def __init__(self, seconds: float, advice: str):
        """Creates a watchdog.

        Args:
          seconds: time without progress after which the process ends.
          advice: the last sentence of the error message.
        """
        self._seconds, self._advice, self._place = seconds, advice, "the first step"
        self._seen, self._done = time.monotonic(), threading.Event()

    def __enter__(self) -> "Watchdog":
        if count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def progress(self, place: str) -> None:
        """Reports that all processes have reached a place, which error messages name."""
        self._seen, self._place = time.monotonic(), place

    def _watch(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 1)):
            if time.monotonic() - self._seen > self._seconds:
                text = f"no progress for {self._seconds:g} s (config.parallel.timeout_seconds) after {self._place}: "
                text += f"another process of this run hangs or its machine is gone. {self._advice}"
                _leave(LostProcessError(text))
