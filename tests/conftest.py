"""Every test runs offline, seeded and on one thread: tiny models gain nothing from more, busy machines lose much."""

import atexit
import os
import shutil
import signal
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="d2v-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
os.environ["KERAS_BACKEND"] = "torch"  # TensorFlow beside PyTorch crashes the interpreter on some machines

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a run in this process flushes them; hypothesis wants to draw them


def pytest_terminal_summary(terminalreporter):
    """The table of differences from transformers, class by class, if its tests ran."""
    table = getattr(sys.modules.get("tests.parity"), "TABLE", {})
    columns = ("outputs", "hidden", "attentions", "loss", "gradients", "opens")
    if table:
        terminalreporter.write_sep("=", "largest differences from transformers")
        terminalreporter.write_line(f"{'':<42}" + "".join(f"{column:>12}" for column in columns))
    for name, row in sorted(table.items()):
        cells = (row.get(column, "") for column in columns)
        cells = (f"{cell:>12.1e}" if isinstance(cell, float) else f"{cell:>12}" for cell in cells)
        terminalreporter.write_line(f"{name:<42}{''.join(cells)}")
