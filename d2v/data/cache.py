"""Results of reading every row, cached by fingerprint, for other processes and the next start.

They are kept in a folder of their own in the cache of `datasets`; deleting it costs only time.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import d2v
from d2v.config import Job
from d2v.data.cores import granted_cores
from d2v.data.rows import CHUNK, Split, has_paths, paths_outside

if TYPE_CHECKING:
    import pyarrow as pa

WORTH = 10_000
"""Number of rows from which the cache is faster than reading them all again."""
FORMAT = 4
"""To be raised when the results of a mapped function change."""
NETWORK_READS = 32
"""Files that are checked at once: on network disks each takes a millisecond or more of waiting."""


def cache_folder() -> Path:
    """The cache's folder, made if needed."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "d2v"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def first_on_its_node(job: Job, line: str | None) -> Iterator[None]:
    """Within, one process of each machine comes first and the others wait for it, however long it takes.

    Args:
        job: from `d2v.training.job.start`.
        line: description of the work, which is printed; None if nothing is left to do.
    """
    with job.accelerator.local_main_process_first():
        if line and job.is_main:
            print(line, flush=True)
        yield


def map_rows(
    job: Job,
    split: Split,
    columns: Sequence[str],
    function: Callable[["pa.Table"], "pa.Table"],
    what: str,
    *,
    files: bool = False,
    parallel: bool = True,
) -> tuple[Any, np.ndarray]:
    """A function's result for each row, read from the cache if it was computed before.

    Args:
        job: from `d2v.training.job.start`.
        split: the rows; if they are most of a table, the whole table is read, so that other shares of it, or other
            seeds, use the same cache.
        columns: that the function uses.
        function: of a table with these columns, to one of as many rows; it has to pickle, alike in every process.
        what: name of the result, for people.
        files: whether columns may be paths, whose files belong to the fingerprint too.
        parallel: whether to use all cores; not for functions that use them anyway.

    Returns:
        A `datasets.Dataset`, its files mapped into memory, and (N,) its rows that are the split's.
    """
    whole = 2 * len(split) >= len(split.table)
    table = split.table.select_columns(list(columns))
    chosen = split.index if whole else np.arange(len(split))
    rows = table if whole else table.select(split.index)
    return map_table(job, rows, function, f"{split.name}: {what}", files=files, parallel=parallel), chosen


def map_table(
    job: Job,
    table: Any,
    function: Callable[["pa.Table"], "pa.Table"],
    what: str,
    *,
    files: bool = False,
    parallel: bool = True,
) -> Any:
    """A Dataset of a function's result for each row of a pyarrow table or a `datasets.Dataset`, see `map_rows`."""
    import datasets
    import pyarrow as pa

    table = datasets.Dataset(table, fingerprint="none") if isinstance(table, pa.Table) else table
    rows = table.with_format("arrow")
    if len(rows) < WORTH:
        starts = range(0, len(rows), CHUNK)
        tables = [function(rows[start : start + CHUNK]) for start in starts] or [function(table.data.table.slice(0, 0))]
        return datasets.Dataset(pa.concat_tables(tables), fingerprint="none")
    key = agree(job, lambda: digest(rows, function, files=files))
    file = cache_folder() / f"{key}.arrow"
    missing = not list(file.parent.glob(f"{key}*.arrow"))
    line = f"{what} of {len(rows)} rows, which are kept for the next start"
    options: dict[str, Any] = {"batched": True, "batch_size": CHUNK, "remove_columns": table.column_names}
    with first_on_its_node(job, line if missing else None):
        cores = granted_cores() if parallel else 1
        options |= {"cache_file_name": str(file), "new_fingerprint": key, "num_proc": cores if cores > 1 else None}
        return rows.map(function, **options)


def arrays(column: "pa.ChunkedArray") -> list[np.ndarray]:
    """The lists of numbers in a column, each as an array, int32."""
    found: list[np.ndarray] = []
    for chunk in column.chunks:
        values, ends = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        found += [values[start:end].astype(np.int32) for start, end in pairwise(ends)]
    return found


def agree(job: Job, find_out: Callable[[], str]) -> str:
    """The first process's result, on all processes."""
    if job.accelerator.num_processes == 1:
        return find_out()
    from accelerate.utils import broadcast_object_list

    (found,) = broadcast_object_list([find_out() if job.is_main else ""])
    return found


def digest(table: Any, *others: Any, files: bool = False) -> str:
    """Fingerprint of a table and other values.

    Args:
        table: a `datasets.Dataset`; one in files is identified by these, another one by its contents.
        *others: anything that pickles.
        files: whether the contents may be paths, whose sizes and times are included too.
    """
    from datasets.fingerprint import Hasher

    found = hashlib.sha256(f"{FORMAT} {d2v.__version__} {Hasher.hash(others)} {len(table)}".encode())
    plain = table.with_format("arrow")
    if table.cache_files:
        found.update(table._fingerprint.encode())
    chunks = range(0, len(table), 100 * CHUNK)
    for chunk in (plain[start : start + 100 * CHUNK] for start in chunks if files or not table.cache_files):
        if not table.cache_files:
            found.update(contents(chunk))
        if files:
            found.update(states(paths_of(chunk)))
    return found.hexdigest()[:32]


def contents(table: "pa.Table") -> bytes:
    """The bytes of a table, however it is chunked."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue()


def paths_of(table: "pa.Table") -> list[str]:
    """The values of a table that may be paths to files."""
    import pyarrow as pa

    found: list[str] = []
    for column in table.columns:
        column = paths_outside(column) if has_paths(column.type) else column
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found += (path for path in column.unique().to_pylist() if path)
    return found


def states(paths: Sequence[str]) -> bytes:
    """Sizes and times of files."""

    def state(path: str) -> str:
        try:
            found = Path(path).stat()
        except (OSError, ValueError):
            return "-"
        return f"{found.st_size} {found.st_mtime_ns}"

    if not paths:
        return b""
    with ThreadPoolExecutor(NETWORK_READS) as pool:
        return "\n".join(pool.map(state, paths)).encode()
