"""How a program ends: what a user can mend, a signal or a lack of memory is one line on stderr and an exit code.

Imports little, so that a signal is answered by that line while the rest is still being imported.
"""

import contextlib
import functools
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from alexnet_jax.errors import Terminated, UserError, disk_hint, lacks_memory, reason

Main = Callable[[list[str]], None]
"""A function of the words of a command line."""

LEAST_ADDRESS_SPACE = 2_500_000_000
"""Bytes of address space with which the smallest networks train on two cores; with a gigabyte JAX does not start."""


def run_program(main: Main, argv: list[str]) -> None:
    """Runs a main function as this process: `exit_on_user_error`, and no interrupt is lost or waits for threads."""
    _check_address_space()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored, as after nohup
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _interrupt_again
    from alexnet_jax.system.machine import keep_freed_memory

    keep_freed_memory()
    try:
        exit_on_user_error(main)(argv)
    except SystemExit as end:
        if end.code not in (130, 143):
            raise
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(end.code)


def _check_address_space() -> None:
    """Ends a program that may use so little that libraries in C++ would abort it in the middle of something."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        least = f"{LEAST_ADDRESS_SPACE / 1e9:g} GB"
        leave(f"this process may use {limit / 1e9:.1f} GB of address space; it needs {least} at least (ulimit -v)")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; during an import ends at once, for a library may crash if its start is interrupted."""
    if any(where.f_code.co_filename.startswith("<frozen importlib") for where, _ in traceback.walk_stack(frame)):
        os.write(2, b"error: interrupted\n")
        os._exit(130)
    raise KeyboardInterrupt


def _interrupt_again(unraisable: Any) -> None:
    """Repeats an interrupt that came where no error can be raised, as in JAX's callback of the garbage collector."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
        threading.Timer(0.01, _signal_main_thread, [number]).start()
    else:
        sys.__unraisablehook__(unraisable)


def _signal_main_thread(number: signal.Signals) -> None:
    """Sends a signal to the main thread; where threads get none, as on Windows, Python still answers it in that one."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def exit_on_user_error(main: Main) -> Main:
    """Wraps a program's main function: failures that are no defects of it end it with one line and an exit code.

    They are a UserError, a signal, a file or stream that cannot be used, too little memory, and a device that
    JAX_PLATFORMS names and JAX does not find.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str]) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be Unicode, nor terminals show all of it
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            main(argv)
            sys.stdout.flush()
        except UserError as error:
            leave(str(error), error.exit_code)
        except KeyboardInterrupt as error:
            leave(*("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130))
        except Exception as error:
            if lacks_memory(error):
                advice = "give it more (ulimit -v), or less to do: fewer threads, smaller batches"
                leave(f"out of memory ({reason(error)}): {advice}")
            if isinstance(error, OSError):
                _leave_for(error)
            if isinstance(error, AssertionError | RuntimeError) and (wanted := _missing_platform()):
                leave(f"JAX_PLATFORMS={wanted}, but JAX finds no such device here; unset it to use what there is")
            raise

    return wrapped


def _missing_platform() -> str:
    """The value of JAX_PLATFORMS if JAX has no such device, for which its own errors have many forms; else ""."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError):
        return os.environ.get("JAX_PLATFORMS", "")
    return ""


def leave(message: str, status: int = 2) -> NoReturn:
    """Prints an error in one line and ends the program."""
    from alexnet_jax.system import console

    print("error:", console.printable(message, keep="\n"), file=sys.stderr)
    sys.exit(status)


def _leave_for(error: OSError) -> NoReturn:
    """Ends the program after an error of the system; if nobody reads its output on, as after `| head`, silently."""
    name = error.filename
    try:
        sys.stdout.flush()
    except OSError:  # so it is standard output that cannot be written
        name = "standard output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        sys.exit(141)
    leave(f"{name or 'standard output or a file'}: {reason(error)}{disk_hint(error)}")
