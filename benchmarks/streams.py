"""Whether memory stays what it is while a stream is trained on: a tiny model, many updates, more rows than a buffer.

python -m benchmarks.streams
python -m benchmarks.streams --updates 2000 --shards 20
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.recipe import RECIPES

OPTIONS = "--run.tracker=null --run.precision=fp32 --run.log_every=100 --run.eval_every=1000000 --data.batch_size=4"
OPTIONS += " --data.vocab_size=300 --arch.hidden_size=8 --arch.num_hidden_layers=1 --arch.num_attention_heads=2"
OPTIONS += " --arch.intermediate_size=8 --data.streaming=true --optim.schedule=constant"
WORDS = np.array(
    ["a", "cat", "dog", "sees", "the", "small", "big", "one", "two", "three", "house", "tree", "runs", "under", "over"]
)


def write_shards(folder: Path, shards: int, rows: int) -> None:
    """Write shards of texts of two classes, a validation and a test."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    names = [f"train-{i:05d}-of-{shards:05d}" for i in range(shards)] + ["validation", "test"]
    for name in names:
        count = rows if name.startswith("train") else 20
        texts = [" ".join(draw.choice(WORDS, draw.integers(3, 12))) for _ in range(count)]
        columns = {"text": texts, "label": ["odd" if "cat" in text else "even" for text in texts]}
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet")


def resident(pid: int) -> float:
    """MB of memory that a process has."""
    import psutil

    return psutil.Process(pid).memory_info().rss / 2**20


def updates_of(log: Path) -> int:
    """The updates that a run has logged."""
    lines = log.read_text("utf-8").splitlines() if log.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20_000, help="of the run")
    parser.add_argument("--shards", type=int, default=200, help="of the stream")
    parser.add_argument("--rows", type=int, default=500, help="of a shard")
    parser.add_argument("--every", type=int, default=2000, help="updates from one line to the next")
    return parser


def main(argv: list[str] | None = None) -> list[tuple[int, float]]:
    args = command_line().parse_args(argv)
    measured: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data"), Path(folder, "run")
        write_shards(data, args.shards, args.rows)
        command = [sys.executable, str(RECIPES / "text_classification.py"), *OPTIONS.split(), f"--data.path={data}"]
        command += [f"--run.out={out}", f"--run.max_steps={args.updates}"]
        quiet = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=quiet) as run:
            print(f"{args.shards} shards of {args.rows} rows\n{'updates':>8}  {'MB':>6}", flush=True)
            while run.poll() is None:
                done = updates_of(out / "log.jsonl")
                if done >= args.every * (len(measured) + 1) and done < args.updates:
                    measured.append((done, resident(run.pid)))
                    print(f"{done:>8}  {measured[-1][1]:>6.0f}", flush=True)
                time.sleep(0.5)
        if run.returncode:
            sys.exit(f"the run ended with {run.returncode}")
    return measured


if __name__ == "__main__":
    main()
