"""Signals: a run that is asked to stop saves first, and its data workers live until it has.

SIGINT (Ctrl-C), SIGTERM, and what clusters send before the time is up: SIGUSR1 and SIGHUP. One that was ignored from
the start, as `nohup` does, stays ignored. Windows lacks some of them.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from d2v.errors import Interrupted

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]

LAUNCHED = "ACCELERATE_MIXED_PRECISION"
"""Environment variable that `accelerate launch` sets, whatever the precision."""

AGAIN = 5.0
"""Seconds in which a second signal is the first once more: a launcher passes on what its whole group has got."""

received: list[int] = []
"""Signals that came while a run was training and are waiting to be obeyed."""


@contextmanager
def hold_signals() -> Iterator[list[int]]:
    """Within, signals are collected in `received`; Ctrl-C or SIGTERM again, seconds later, is no longer held back."""
    received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    first: list[float] = []

    def receive(number, frame):
        received.append(number)
        first.append(time.monotonic())
        handler = before[number]
        if number in (signal.SIGINT, signal.SIGTERM) and first[-1] - first[0] > AGAIN:
            if not callable(handler):
                signal.signal(number, handler)
                os.kill(os.getpid(), number)
            else:
                handler(number, frame)

    held = [each for each, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for each in held:
        signal.signal(each, receive)
    try:
        yield received
    finally:
        for each in held:
            signal.signal(each, before[each])
        received.clear()


def interrupt_at_signals() -> None:
    """Let signals raise Interrupted from now on, wherever the main thread is; `hold_signals` holds them back."""

    def interrupt(number, frame):
        raise Interrupted(f"{signal.Signals(number).name}; --run.resume true goes on with a run that has begun")

    for each in SIGNALS:
        if signal.getsignal(each) not in (signal.SIG_IGN, None):
            signal.signal(each, interrupt)


def watch_launcher() -> None:
    """Take the death of the launcher that started this process for SIGTERM; without a launcher nothing is watched."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if os.name == "posix" and (LAUNCHED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ):
        threading.Thread(target=watch, daemon=True).start()


def end_workers() -> None:
    """End the data workers that are left, at once; Python would ask them by SIGTERM, which they outlive for a while."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes the end of a worker for an error
    for child in multiprocessing.active_children():
        child.kill()
