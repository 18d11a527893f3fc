"""How many cores this process may use."""

import os
from contextlib import suppress
from pathlib import Path


def granted_cores() -> int:
    """Cores that this process may use: by its affinity mask, its container's quota, and its Slurm task."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = [int(os.environ[name]) for name in ("SLURM_CPUS_PER_TASK",) if os.environ.get(name, "").isdigit()]
    return max(1, min([cores, *given, *quotas()]))


def quotas(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Cores that control groups grant this process, rounded up; none where there are none."""
    found = []
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        lines = []
    for _, kinds, name in (line for line in lines if len(line) == 3):
        top = root / kinds if kinds else root  # version 2 has one tree, version 1 one a kind
        group = top / name.lstrip("/")
        for folder in (top, *(each for each in (group, *group.parents) if top in each.parents)):
            with suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                found += [-(-int(quota) // int(period))]
            with suppress(OSError, ValueError):
                quota, period = ((folder / f"cpu.cfs_{each}_us").read_text() for each in ("quota", "period"))
                found += [-(-int(quota) // int(period))]
    return [cores for cores in found if cores > 0]  # -1 is no limit
