"""What a start costs as data grow: seconds to the first update, memory and cache, cold and when it is started again.

    python -m benchmarks.scale
    python -m benchmarks.scale --rows 10000 100000 1000000 --kinds sounds --out scale

Synthetic sets of rows that are nearly nothing themselves, so that what is left is what each row costs: sentences,
running text, sounds and images of a hundred bytes. Each start is a process of its own, of the recipe itself.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

COMMON = "--run.tracker=null --run.max_steps=1 --run.precision=fp32 --data.max_test_samples=10 --data.batch_size=8"
SIZES = "--arch.hidden_size=8 --arch.num_hidden_layers=1 --arch.num_attention_heads=2 --arch.intermediate_size=8"
AUDIO = " --arch.conv_dim=[4,4,4,4,4,4,4] --arch.num_conv_pos_embedding_groups=2 --arch.num_conv_pos_embeddings=2"
KINDS = {
    "texts": ("text_classification", "--data.vocab_size=300"),
    "running text": ("causal_lm", "--data.vocab_size=300 --data.max_length=64"),
    "sounds": ("audio_classification", AUDIO),
    "images": ("image_classification", "--arch.image_size=16 --arch.patch_size=8"),
}
"""Recipe and options by what its data are."""
BARS = {"seconds to the first update": 60.0, "peak memory, MB": 3000.0, "cache, bytes a row": 200.0}
"""What a second start of a million rows should stay below on two cores."""
CLASSES = 10


def write_set(kind: str, rows: int, folder: Path) -> None:
    """Write `train.parquet` of so many rows, and a small validation and test."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for split, count in (("train", rows), ("validation", 100), ("test", 100)):
        table: dict[str, Any] = {"label": [f"class {i % CLASSES}" for i in range(count)]}
        if "text" in kind:
            table["text"] = [f"row {i} says that {i % 977} and {i % 89} are numbers" for i in range(count)]
        else:
            column, files = ("audio", sounds()) if kind == "sounds" else ("image", images())
            table[column] = [{"bytes": files[i % len(files)], "path": f"{i}"} for i in range(count)]
        parquet.write_table(pa.table(table), folder / f"{split}.parquet", row_group_size=10_000)


def sounds() -> list[bytes]:
    """FLAC files of silence, of several lengths, of about 100 bytes."""
    import numpy as np
    import soundfile

    files = []
    for i in range(40):
        file = io.BytesIO()
        soundfile.write(file, np.zeros(800 + 80 * i, np.int16), 16_000, format="FLAC")
        files.append(file.getvalue())
    return files


def images() -> list[bytes]:
    """PNG files of a colour each, of about 100 bytes."""
    from PIL import Image

    files = []
    for i in range(40):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (6 * i, 0, 255 - 6 * i)).save(file, "PNG")
        files.append(file.getvalue())
    return files


class Reached(Exception):
    """The first update was made."""


def child(kind: str, folder: str, out: str, begun: float) -> None:
    """Run a recipe up to its first update, and print what that took as JSON."""
    from benchmarks.recipe import RECIPES, load_recipe
    from d2v.cli import parse
    from d2v.data.loaders import eval_loader
    from d2v.training import loop
    from d2v.training.report import peak_memory_mb

    name, options = KINDS[kind]
    recipe, figures = load_recipe(name), dict[str, float]()
    imported = time.time()
    fit, accumulate = recipe.fit, loop.accumulate

    def fitting(job: Any, model: Any, batches: Any, *args: Any, **options: Any) -> None:
        figures["seconds to the loop"] = time.time() - imported
        source = batches.loader.dataset
        start = time.time()
        iter(eval_loader(job, source.rows, batches.loader.collate_fn.collate))
        figures["seconds for an evaluation loader"] = time.time() - start
        fit(job, model, batches, *args, **options)

    def first(*args: Any, **options: Any) -> None:
        accumulate(*args, **options)
        raise Reached

    recipe.fit, loop.accumulate = fitting, first
    args = [f"--data.path={folder}", f"--run.out={out}", *COMMON.split(), *SIZES.split(), *options.split()]
    with suppress(Reached):
        recipe.main(parse(recipe.Config, args, demo=RECIPES / f"configs/{name}/demo.yaml"))
    now = time.time()
    waited = figures["seconds for an evaluation loader"]  # which no training builds over train
    figures |= {"seconds to the first update": now - begun - waited, "of these, imports": imported - begun}
    figures["seconds of one core"] = time.process_time() - waited  # whatever else the machine does
    print("figures", json.dumps(figures | {"peak memory, MB": peak_memory_mb() or 0.0}), flush=True)


def size_of(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(kind: str, rows: int) -> list[dict[str, Any]]:
    """A cold and a second start of one kind of data."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(kind, rows, folder / "set")
        variables = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        variables |= {"HF_DATASETS_CACHE": str(folder / "cache"), "ACCELERATE_USE_CPU": "true"}
        for start in ("cold", "second"):
            begun = time.time()
            command = [sys.executable, "-m", "benchmarks.scale", "--child", kind, str(folder / "set")]
            command += [str(folder / start), str(begun)]
            done = subprocess.run(command, env=variables, capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("figures ")]
            if not lines:
                sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
            about = {"kind": kind, "rows": rows, "start": start, "source, bytes": size_of(folder / "set")}
            cache = size_of(folder / "cache")
            found.append(about | json.loads(lines[0].partition(" ")[2]) | {"cache, bytes a row": cache / rows})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The figures as a table of Markdown."""
    keys = ["seconds to the first update", "of these, imports", "seconds of one core"]
    keys += ["seconds for an evaluation loader", "peak memory, MB", "cache, bytes a row"]
    lines = ["| data | rows | start | " + " | ".join(keys) + " |", "|---|---|---|" + "---|" * len(keys)]
    for row in found:
        values = " | ".join(f"{row[key]:.1f}" if key != "peak memory, MB" else f"{row[key]:.0f}" for key in keys)
        lines.append(f"| {row['kind']} | {row['rows']:,} | {row['start']} | {values} |")
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draw how seconds, memory and cache grow with the rows; straight lines of slope 1 are linear growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(BARS), figsize=(5 * len(BARS), 4), layout="constrained")
    for axis, (key, bar) in zip(axes, BARS.items(), strict=True):
        for i, kind in enumerate(dict.fromkeys(row["kind"] for row in found)):
            for start, style in (("cold", ":"), ("second", "-")):
                points = [(row["rows"], row[key]) for row in found if (row["kind"], row["start"]) == (kind, start)]
                axis.plot(*zip(*points, strict=True), style, marker=".", color=f"C{i}", label=f"{kind}, {start}")
        axis.axhline(bar, color="black", linewidth=0.8, linestyle="--")
        axis.set(xscale="log", yscale="log", xlabel="rows", title=key)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="rows of train")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what rows are")
    parser.add_argument("--out", default="scale", help="what scale.json and scale.png are called")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write it as JSON and as a picture."""
    args = command_line().parse_args(argv)
    if args.child:
        child(*args.child[:3], float(args.child[3]))
        return
    found = []
    for kind in args.kinds:
        for rows in args.rows:
            found += measure(kind, rows)
            print(table(found[-2:]).splitlines()[-2], table(found[-2:]).splitlines()[-1], sep="\n", flush=True)
    print("", table(found), sep="\n")
    over = [
        f"{row['kind']}: {key} {row[key]:.0f}, should be below {bar:.0f}"
        for row in found
        for key, bar in BARS.items()
        if row["start"] == "second" and row[key] > bar
    ]
    print(*over, sep="\n")
    Path(f"{args.out}.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    plot(found, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
