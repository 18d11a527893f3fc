"""The number of cores that this process may use, and the control groups that limit it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS, TABLE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def granted_cores() -> int:
    """Number of cores that this process may use, by its affinity mask, its container's quota, and its Slurm task."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = [int(os.environ[name]) for name in ("SLURM_CPUS_PER_TASK",) if os.environ.get(name, "").isdigit()]
    return max(1, min([cores, *given, *quotas()]))


def quotas(root: Path | None = None, table: Path | None = None) -> list[int]:
    """Cores that control groups grant this process, rounded up; none where there are none."""
    found = []
    for folder in control_groups(root, table):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            found += [-(-int(quota) // int(period))]
        with suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{each}_us").read_text() for each in ("quota", "period"))
            found += [-(-int(quota) // int(period))]
    return [cores for cores in found if cores > 0]  # -1 is no limit


def control_groups(root: Path | None, table: Path | None) -> Iterator[Path]:
    """The folders of the control groups that this process is in; none where there are none, as on other systems.

    Args:
        root: folder where they are mounted.
        table: file that lists them.
    """
    root, table = root or GROUPS, table or TABLE
    try:
        lines = [line.split(":", 2) for line in table.read_text().splitlines()]
    except OSError:
        lines = []
    for _, kinds, name in (line for line in lines if len(line) == 3):
        top = root / kinds if kinds else root  # version 2 has one tree, version 1 one per kind
        group = top / name.lstrip("/")
        yield from (top, *(each for each in (group, *group.parents) if top in each.parents))
