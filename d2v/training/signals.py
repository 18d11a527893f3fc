"""Signals: a run that is told to stop saves first, and its data workers live until it has.

The signals are SIGINT (Ctrl-C), SIGTERM, and SIGUSR1 and SIGHUP, which clusters send before the time is up. A signal
that was ignored from the start, as by `nohup`, stays ignored. Windows lacks some of them.
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
"""Environment variable that `accelerate launch` always sets."""

AGAIN = 5.0
"""Seconds in which a second signal counts as the same one: a launcher passes on signals that its whole group got."""

received: list[int] = []
"""Signals received during training and not yet handled."""


@contextmanager
def hold_signals() -> Iterator[list[int]]:
    """Within, signals are collected in `received`; a second Ctrl-C or SIGTERM, seconds later, takes effect at once."""
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
    """From now on signals raise Interrupted in the main thread, except within `hold_signals`."""

    def interrupt(number, frame):
        raise Interrupted(f"{signal.Signals(number).name}; --run.resume true goes on with a run that has begun")

    for each in SIGNALS:
        if signal.getsignal(each) not in (signal.SIG_IGN, None):
            signal.signal(each, interrupt)


def watch_launcher() -> None:
    """Treat the death of the launcher that started this process like SIGTERM; does nothing without a launcher."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if os.name == "posix" and (LAUNCHED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ):
        threading.Thread(target=watch, daemon=True).start()


def end_workers() -> None:
    """Kill the remaining data workers at once; Python would send SIGTERM, which they outlive for a while."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes the end of a worker for an error
    for child in multiprocessing.active_children():
        child.kill()
