"""Signals: held while a run saves, raised elsewhere, ignored where they were ignored; on systems that lack some too."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from d2v.data import cores, loaders
from d2v.data.cores import granted_cores
from d2v.errors import Interrupted
from d2v.training import signals
from d2v.training.machine import environment
from d2v.training.report import peak_memory_mb
from d2v.training.signals import end_workers, hold_signals, received

KINDS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture
def handlers():
    """Those of this process come back; meanwhile none is ignored, as SIGHUP is under nohup."""
    before = {each: signal.getsignal(each) for each in KINDS}
    for each, handler in before.items():
        signal.signal(each, signal.SIG_DFL if handler == signal.SIG_IGN else handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # for the handler to run


@pytest.mark.parametrize("kind", KINDS)
def test_signals_are_held_and_the_same_one_again_too(handlers, kind):
    """A launcher passes on what its whole group has got: the second one used to end the saving."""
    before = signal.getsignal(kind)
    with hold_signals():
        send(kind)
        send(kind)
        assert received == [kind, kind]
    assert not received and signal.getsignal(kind) == before


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_whoever_insists_is_obeyed(handlers, monkeypatch, kind):
    signals.interrupt_at_signals()
    with pytest.raises(Interrupted, match=f"{signal.Signals(kind).name}; --run.resume true"), hold_signals():
        send(kind)
        monkeypatch.setattr(signals, "AGAIN", -1.0)  # seconds have gone
        send(kind)
        raise AssertionError("still held back")


def test_what_nohup_ignores_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.interrupt_at_signals()
    with hold_signals():
        send(signal.SIGHUP)
        assert not received and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    send(signal.SIGHUP)


def test_a_signal_outside_the_loop_is_no_exception_that_others_catch(handlers):
    """A broad `except Exception`, around a file that cannot be decoded, would have counted it as a bad row."""
    signals.interrupt_at_signals()
    with pytest.raises(Interrupted):
        try:
            send(signal.SIGUSR1)
        except Exception:
            raise AssertionError("caught") from None


def test_another_thread_than_the_main_one_holds_none():
    def hold():
        with hold_signals() as held:
            results.append(list(held))

    results = []
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert results == [[]]


def test_the_launchers_death_is_a_signal(handlers, monkeypatch):
    parents = iter([1, 1, 7])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 7))
    monkeypatch.setenv(signals.LAUNCHED, "no")
    monkeypatch.setattr(signals.time, "sleep", lambda seconds: None)
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    signals.watch_launcher()
    for thread in threading.enumerate():
        if thread.daemon and thread.name.endswith("(watch)"):
            thread.join()
    assert killed == [(os.getpid(), signal.SIGTERM)]


def test_without_a_launcher_nobody_watches(monkeypatch):
    """Of `nohup python recipe.py &` the shell goes away, and the run goes on."""
    for name in (signals.LAUNCHED, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    before = threading.active_count()
    signals.watch_launcher()
    assert threading.active_count() == before


def test_a_system_without_these_signals_and_modules_begins_a_run(handlers, monkeypatch):
    """Windows, as far as it can be played: no SIGUSR1, SIGHUP or SIGALRM, no `resource`, no affinity."""
    import psutil  # noqa: F401 (which asks for the platform once, when it is imported)

    for name in ("SIGUSR1", "SIGHUP", "SIGALRM"):
        monkeypatch.delattr(signal, name)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    there = runpy.run_path(signals.__file__)  # a copy, as it would be there
    assert there["SIGNALS"] == [signal.SIGINT, signal.SIGTERM]
    with there["hold_signals"]():
        send(signal.SIGTERM)
        assert there["received"] == [signal.SIGTERM]
    loaders.outlive_signals(0)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert torch.cuda.is_available() or peak_memory_mb() is None
    assert granted_cores() >= 1
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(cores, "TABLE", Path("nowhere"))
    assert environment()["cores"] >= 1 and environment()["memory_mb"] > 100


@pytest.mark.slow
def test_workers_may_be_spawned(tmp_path):
    """As macOS and Windows start them: nothing of a run is inherited, all of it is pickled."""
    code = f"""
import multiprocessing
from benchmarks.kills import write_data, command
from pathlib import Path
import runpy, sys
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    data = Path({str(tmp_path / "data")!r})
    write_data("image_classification", data)
    sys.argv = command("image_classification", data, Path({str(tmp_path / "out")!r}), workers=1)[1:]
    sys.argv += ["--run.max_steps=2"]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (tmp_path / "spawned.py").write_text(code)
    done = subprocess.run([sys.executable, str(tmp_path / "spawned.py")], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "out/results.json").is_file(), done.stderr[-3000:]


def test_workers_that_are_left_are_ended_at_once():
    """By SIGTERM, which Python sends them at its end, they would live on for half a minute."""
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    before = signal.getsignal(signal.SIGCHLD)
    worker.start()
    try:
        end_workers()
        worker.join(10)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert worker.exitcode == -signal.SIGKILL
