"""What a run writes down of its machine, on Linux and, as far as they can be played, on others."""

import json
import os
import subprocess
import sys

import pytest
import torch

from d2v.data.loaders import eval_loader
from d2v.models.text import Data2VecTextConfig, Data2VecTextModel
from d2v.training import machine
from d2v.training.identity import checkpoint_fingerprint
from d2v.training.report import peak_memory_mb
from d2v.training.resume import RandomState
from tests.helpers import make_job
from tests.tiny import TINY_TEXT
from tests.training.test_loop import ROWS, collate


def test_memory_is_what_the_container_has(tmp_path):
    table = tmp_path / "self"
    table.write_text("0::/a\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/memory.max").write_text("max\n")
    whole = machine.granted_memory(tmp_path, table)
    (tmp_path / "a/memory.max").write_text("104857600\n")
    assert machine.granted_memory(tmp_path, table) == 100 * 2**20 < whole


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: avx2\n\nmodel name\t: other\n", "Some CPU @ 2 GHz"),
        ("processor\t: 0\nFeatures\t: asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "implementer 0x41"),
        ("processor\t: 0\nModel\t\t: Some Board 4\n", "Some Board 4"),
    ],
)
def test_the_name_of_a_processor(tmp_path, monkeypatch, text, name):
    """An x86, two of ARM, and what macOS and Windows have in place of the file."""
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert name in machine.cpu_model()
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    for system, says in (("darwin", "Apple M9"), ("win32", "AMD64 Family 25")):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(machine, "output_of", lambda *command: "Apple M9")
        monkeypatch.setattr(machine.platform, "processor", lambda: "AMD64 Family 25")
        assert machine.cpu_model() == says


@pytest.mark.parametrize(
    ("system", "found"), [("linux", ["asimd", "bf16"]), ("darwin", ["asimd", "bf16"]), ("win32", [])]
)
def test_instructions_of_arm(tmp_path, monkeypatch, system, found):
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(machine, "INSTRUCTIONS", {"avx2": "_no_such_function_of_torch"})
    monkeypatch.setattr(machine, "output_of", lambda *command: "1")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    if system == "linux":
        (tmp_path / "cpuinfo").write_text("Features\t: fp asimd evtstrm bf16\n")
    assert machine.instructions() == found


def test_the_state_of_the_checkout(tmp_path):
    assert machine.git_state(tmp_path) is None  # installed from a wheel
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "untracked").write_text("2")
    clean = machine.git_state(tmp_path)
    assert clean["clean"] is True and len(clean["commit"]) == 40
    (tmp_path / "file").write_text("3")
    assert machine.git_state(tmp_path) == clean | {"clean": False}


def test_what_decides_a_speed_is_there():
    found = json.loads(json.dumps(machine.environment()))
    assert found.keys() >= {"cpu", "instructions", "kernels", "cores", "threads", "memory_mb", "gpus", "git", "torch"}
    assert found["cores"] >= 1 and found["memory_mb"] > 100
    if sys.platform == "linux" and torch.backends.cpu.get_cpu_capability().startswith("AVX2"):
        assert "avx2" in found["instructions"]


def test_a_checkpoint_s_fingerprint_is_of_its_weights(tmp_path, monkeypatch):
    def saved(seed):
        torch.manual_seed(seed)
        Data2VecTextModel(Data2VecTextConfig(**TINY_TEXT, vocab_size=9)).save_pretrained(tmp_path / str(seed))
        return checkpoint_fingerprint(str(tmp_path / str(seed)))

    first, second = saved(1), saved(2)  # of the same sizes
    assert first != second and first == checkpoint_fingerprint(str(tmp_path / "1"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checkpoint_fingerprint("someone/not-in-the-cache") is None
    commit = tmp_path / "models--a--b/snapshots/abc123/config.json"
    monkeypatch.setattr("d2v.training.identity.fetch_file", lambda *_: commit)
    assert checkpoint_fingerprint("a/b") == {"commit": "abc123"}


@pytest.mark.parametrize(
    ("has", "said", "asks"),
    [
        ("always [madvise] never", None, "1"),
        ("always [madvise] never", "0", "0"),
        ("[always] madvise never", None, None),
    ],
)
def test_huge_pages_are_asked_for(tmp_path, monkeypatch, has, said, asks):
    """Where they are for those who ask, and the user has not said otherwise."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", said or "")
    if said is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    monkeypatch.setattr(machine, "HUGE_PAGES", tmp_path / "enabled")
    machine.ask_for_huge_pages()  # there is no such file elsewhere
    assert os.environ.get("THP_MEM_ALLOC_ENABLE") == said
    (tmp_path / "enabled").write_text(f"{has}\n", "utf-8")
    machine.ask_for_huge_pages()
    assert os.environ.get("THP_MEM_ALLOC_ENABLE") == asks


@pytest.mark.parametrize("asked", ["true", "1", ""])
def test_a_run_on_the_cpu_asks_no_gpu(monkeypatch, asked):
    """A GPU that is there, but that Accelerate is not to use, decides nothing and gives no memory."""

    def asks(*args, **options):
        raise RuntimeError("asked the GPU")

    names = ("is_bf16_supported", "get_device_name", "get_device_properties", "max_memory_allocated")
    for name in (*names, "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, asks)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = RandomState().state_dict() | {"cuda": [torch.zeros(1)]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    questions = [
        machine.has_bf16,
        machine.environment,
        peak_memory_mb,
        RandomState().state_dict,
        lambda: RandomState().load_state_dict(state),
    ]
    for question in questions:
        if asked:
            question()
        else:
            with pytest.raises(RuntimeError, match="asked the GPU"):
                question()
    assert eval_loader(make_job(), ROWS, collate).pin_memory is not bool(asked)
