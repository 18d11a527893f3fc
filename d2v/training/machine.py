"""The machine of a run, as far as it affects speed or last digits."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import d2v
from d2v.data.cores import control_groups, granted_cores
from d2v.devices import on_cuda

CPUINFO = Path("/proc/cpuinfo")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
INSTRUCTIONS = {
    "avx2": "_is_avx2_supported",
    "avx512": "_is_avx512_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "avx512_vnni": "_is_vnni_supported",
    "amx": "_is_amx_tile_supported",
    "amx_fp16": "_is_amx_fp16_supported",
}
"""x86 instruction sets that decide the choice of kernels, and torch's private functions that check for them."""
ARM = ("asimd", "sve", "sve2", "bf16", "svebf16", "i8mm")


def environment() -> dict[str, Any]:
    """Versions, machine and command of this run."""
    packages = ("torch", "accelerate", "datasets", "numpy", "safetensors", "tokenizers", "torchvision", "scipy")
    versions = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)}
    cpu = cpu_model()
    device = torch.cuda.get_device_name() if on_cuda() else cpu
    machine: dict[str, Any] = {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "device": device,
        "cpu": cpu,
        "instructions": instructions(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": granted_cores(),
        "threads": torch.get_num_threads(),
        "memory_mb": granted_memory() // 2**20,
        "gpus": gpus(),
    }
    return machine | {"d2v": d2v.__version__, "git": git_state(Path(d2v.__file__).parents[1])} | versions


def cpu_model() -> str:
    """The processor's name, as far as the system knows it."""
    with suppress(OSError):  # Linux; for ARM it has only the numbers of maker and part
        fields: dict[str, str] = {}
        for line in CPUINFO.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        if name := fields.get("model name") or fields.get("Model"):
            return name
        if part := fields.get("CPU part"):
            return f"{platform.machine()}, implementer {fields.get('CPU implementer')}, part {part}"
    if sys.platform == "darwin":
        name = output_of("sysctl", "-n", "machdep.cpu.brand_string")
        return name or platform.machine()
    return platform.processor() or platform.machine()


def instructions() -> list[str]:
    """The instructions of `INSTRUCTIONS` or `ARM` that this processor has."""
    found = [name for name, check in INSTRUCTIONS.items() if getattr(torch.cpu, check, lambda: False)()]
    if platform.machine().lower() in ("aarch64", "arm64"):
        features: set[str] = set()
        with suppress(OSError):
            lines = CPUINFO.read_text("utf-8", "replace").splitlines()
            features = {word for line in lines if line.startswith("Features") for word in line.split()}
        if sys.platform == "darwin" and output_of("sysctl", "-n", "hw.optional.arm.FEAT_BF16") == "1":
            features |= {"asimd", "bf16"}
        found += [name for name in ARM if name in features]
    return found


def gpus() -> list[str]:
    """The GPUs that this process may use, with their memory and CUDA or ROCm version."""
    if not on_cuda():
        return ["Apple GPU"] if torch.backends.mps.is_available() else []
    each = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    library = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return [f"{gpu.name}, {gpu.total_memory // 2**20} MB, {library}" for gpu in each]


def output_of(*command: str) -> str | None:
    """A command's output; None if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_state(folder: Path) -> dict[str, Any] | None:
    """The `commit` of this package's checkout, and whether it is `clean`: no tracked file differs; None without one."""
    if not (folder / ".git").exists():  # installed, perhaps into a folder of another repository
        return None
    commit = output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = output_of("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "clean": None if changed is None else not changed}


def ask_for_huge_pages() -> None:
    """Let torch request pages of 2 MB for large tensors, where Linux grants them on request.

    Otherwise a process gets new memory in pages of 4 KB: 37,699 of them for the gradient of 50,265 tokens'
    embeddings, in each update. It has no effect once a large tensor has been made.
    """
    with suppress(OSError):
        if "[madvise]" in HUGE_PAGES.read_text("utf-8"):
            os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def has_bf16() -> bool:
    """Whether the computing device has instructions for bf16; without them bf16 is slower than fp32."""
    if on_cuda():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool({"avx512_bf16", "amx"} & set(instructions()))


def granted_memory(root: Path | None = None, table: Path | None = None) -> int:
    """Bytes of memory that this process may use: the machine's, or its container's share."""
    import psutil

    found = [psutil.virtual_memory().total]
    for folder in control_groups(root, table):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # "max" is no limit
                found.append(int((folder / name).read_text()))
    return min(found)
