"""What every test is given and held to: no network, one thread, and nothing left behind.

Set before anything heavy is imported, and light itself: a test that needs no torch must not pay for it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from qlmm.core.env import VARIABLES

# Read once when the Hub's library is imported, so it is set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models are slower on several threads, and far slower where another process wants the same cores;
# tests of real sizes ask for more threads themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WATCHED = {variable.name for variable in VARIABLES} | {"HOME", "PATH", "PYTHONPATH", "OMP_NUM_THREADS"}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_END = 5.0


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Only this machine may be reached from the test process; code under test cannot swallow the refusal."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


def _guarded(honest: Callable[..., Any]) -> Callable[..., Any]:
    def ask(self: socket.socket, *args: Any) -> Any:
        address = args[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(str(address[0])):
            pytest.fail(f"a test reached for the network: {address}")
        return honest(self, *args)

    return ask


def _is_here(host: str) -> bool:
    if host in ("localhost", ""):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """A test leaves environment, directory, signal handlers and threads as it found them."""
    environment = {name: os.environ.get(name) for name in WATCHED}
    here, threads = Path.cwd(), set(threading.enumerate())
    handlers = {which: signal.getsignal(which) for which in SIGNALS}
    yield
    left = [name for name in sorted(WATCHED) if os.environ.get(name) != environment[name]]
    left += [which.name for which in SIGNALS if signal.getsignal(which) != handlers[which]]
    left += [str(Path.cwd())] if Path.cwd() != here else []
    left += _still_running(threads)
    _put_back(environment, here, handlers)
    assert not left, f"left behind by the test: {', '.join(left)}"


def _still_running(known: set[threading.Thread]) -> list[str]:
    """New threads that would keep the process alive, after a moment to end."""
    fresh = [thread for thread in threading.enumerate() if thread not in known and not thread.daemon]
    for thread in fresh:
        thread.join(SECONDS_TO_END)
    return [f"thread {thread.name}" for thread in fresh if thread.is_alive()]


def _put_back(environment: dict[str, str | None], here: Path, handlers: dict[signal.Signals, Any]) -> None:
    os.chdir(here)
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for which, handler in handlers.items():
        if handler is not None:  # None: not set from Python, so it cannot be set from here either
            signal.signal(which, handler)
