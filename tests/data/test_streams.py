"""Streams: the rows that come, that they go on where they were, and what is said of shards that cannot be read."""

import hashlib
import io
import json
import threading
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2v.config import Data, Optim
from d2v.data import streams
from d2v.data.facts import note_decoded, say_decoded
from d2v.data.image import ImageData, image_rows, load_images
from d2v.data.labels import LabelData, read_labels
from d2v.data.load import load
from d2v.data.loaders import train_loader
from d2v.data.rows import Rows, check_rows, decode_rows
from d2v.data.streams import rows_of
from d2v.demo.images import png
from d2v.errors import InputError
from d2v.training.memory import out_of_memory_message
from tests.helpers import exit_code_of_worker, make_job


class Bounded(Data):
    max_size = 24.0


SIZES = (7, 12, 5, 9, 6, 11)


def write_shards(folder: Path, sizes=SIZES, name="train-{:05d}-of-{:05d}.parquet") -> Path:
    """Parquet shards of so many rows with a `length` of 1 to 6, a `text`, and a label; and a validation split."""
    import datasets

    folder.mkdir(exist_ok=True)
    for shard, size in enumerate(sizes):
        rows = range(100 * shard, 100 * shard + size)
        columns = {"value": list(rows), "length": [1 + row * 7 % 6 for row in rows], "label": [row % 3 for row in rows]}
        columns["text"] = [f"row {row}" for row in rows]
        datasets.Dataset.from_dict(columns).to_parquet(folder / name.format(shard, len(sizes)))
    datasets.Dataset.from_dict(columns).to_parquet(folder / "validation.parquet")
    return folder


def collate(rows):
    return {key: [row[key] for row in rows] for key in ("value", "seed", "where")} | {"size": len(rows)}


def usable(job, split):
    """The rows whose value is not one of ten."""
    good = check_rows(job, split, [None if value % 10 else "is round" for value in split.column("value")])
    split = split.select(good)
    return Rows(split, split.ids(), split.column("length"))


def make_updates(folder, rank=0, processes=1, seed=0, batches=2, rows=usable, split=None, collate=collate, **options):
    usual = {"path": str(folder), "streaming": True, "batch_size": 6, "bad_rows": "skip", "buffer_rows": 20}
    data = Bounded(**usual | options)
    job = make_job(data, rank=rank, processes=processes, seed=seed, optim=Optim(batches=batches), max_steps=9)
    split = split or load(job, None, inputs={"value": "value"})["train"]
    return job, train_loader(job, rows_of(split, lambda part: rows(job, part)), collate)


def as_processes(count: int, monkeypatch, work) -> list:
    """What `work(rank)` returns on each of so many simulated processes, which tell one another as gloo's do."""
    barrier, told, results = threading.Barrier(count, timeout=60), [None] * count, [None] * count
    rank_of = threading.local()

    def everyones(job, value):
        told[rank_of.rank] = value
        barrier.wait()
        values = list(told)
        barrier.wait()
        return values

    def process(rank):
        rank_of.rank = rank
        try:
            results[rank] = work(rank)
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    monkeypatch.setattr(streams, "everyones", everyones)
    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [each for each in results if isinstance(each, BaseException)], results
    return results


def taken(updates, count):
    return [[batch["value"] for batch in update] for update in islice(updates, count)]


def test_an_epoch_has_every_row_once(tmp_path):
    job, updates = make_updates(write_shards(tmp_path))
    batches = [batch for update in islice(updates, 40) for batch in update]
    for batch in batches:
        values, length = batch["value"], max(1 + value * 7 % 6 for value in batch["value"])
        assert len(values) <= 6 and len(values) * length <= 24
        for value, where in zip(values, batch["where"], strict=True):
            assert where == f"train, {tmp_path}/train-{value // 100:05d}-of-00006.parquet, row {value % 100}"
    seen = [(seed[1], value) for batch in batches for seed, value in zip(batch["seed"], batch["value"], strict=True)]
    first, second = ([value for number, value in seen if number == epoch] for epoch in range(2))
    rows = [100 * shard + row for shard, size in enumerate(SIZES) for row in range(size) if row % 10]
    assert sorted(first) == sorted(second) == rows and first != second
    note_decoded(job, [each for batch in batches for each in batch["decoded"]])
    say_decoded(job)
    fact = job.facts[-1]
    assert (fact["fact"], fact["rows"]) == ("rows left out", sum(-(-size // 10) for size in SIZES))
    assert "is round" in fact["first"]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_streams_go_on_where_they_were(processes, tmp_path, monkeypatch):
    """Shards are dealt to 2 processes, rows to 4; the processes compute as many pieces, together each row once."""
    folder, count = write_shards(tmp_path), 9
    job, _ = make_updates(folder)
    split = load(job, None, inputs={"value": "value"})["train"]

    def begin(rank):
        return make_updates(folder, rank, processes, split=split)[1]

    def resumed(done, rank):
        first, second = begin(rank), begin(rank)
        taken(first, done)
        second.load_state_dict(first.state_dict())
        return taken(second, count - done)

    straight = as_processes(processes, monkeypatch, lambda rank: taken(begin(rank), count))
    assert len({tuple(map(len, each)) for each in straight}) == 1
    for done in (1, 4, 6):
        assert as_processes(processes, monkeypatch, partial(resumed, done)) == [each[done:] for each in straight]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_two_hundred_shards_and_fifty_kills(processes, tmp_path, monkeypatch):
    """The hash of all rows in order is that of the straight run, wherever it was killed; states are read from files."""
    draw = np.random.default_rng(0)
    folder, count = write_shards(tmp_path / "data", draw.integers(20, 60, 200).tolist()), 1500
    job, _ = make_updates(folder)
    split = load(job, None, inputs={"value": "value"})["train"]
    ends = [*sorted(draw.choice(np.arange(1, count), 50, replace=False).tolist()), count]

    def digest(updates):
        rows = [[(batch["value"], batch["seed"]) for batch in update] for update in updates]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest(), rows

    def begin(rank):
        return make_updates(folder, rank, processes, split=split, buffer_rows=500)[1]

    def killed(rank):
        file, seen, done = tmp_path / f"{rank}.pt", [], 0
        for end in ends:
            updates = begin(rank)
            if done:
                updates.load_state_dict(torch.load(file, weights_only=True))
            seen += [[(batch["value"], batch["seed"]) for batch in update] for update in islice(updates, end - done)]
            torch.save(updates.state_dict(), file)
            assert file.stat().st_size < 10_000
            done = end
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    straight = as_processes(processes, monkeypatch, lambda rank: digest(islice(begin(rank), count)))
    assert as_processes(processes, monkeypatch, killed) == [each for each, _ in straight]
    both = [value for _, rows in straight for update in rows for values, _ in update for value in values]
    assert len(set(both)) > 5000  # of some 7,000 that can be used


@pytest.mark.parametrize(("processes", "rows"), [(1, 12), (4, 12), (8, 16), (24, 24)])
def test_an_update_of_more_rows_than_were_asked_for_is_said(processes, rows, tmp_path):
    write_shards(tmp_path)
    job, _ = make_updates(tmp_path, processes=processes)
    said = [fact["rows"] for fact in job.facts if fact["fact"] == "rows of an update"]
    assert said == ([rows] if rows != 12 else [])


def test_a_data_set_of_less_than_a_buffer(tmp_path, monkeypatch):
    """A buffer is an epoch then; where shards are dealt unevenly, who has fewer rows begins again earlier."""
    folder = write_shards(tmp_path, (5, 3))
    _, updates = make_updates(folder, buffer_rows=200, batches=1)
    seen = [seed[1] for update in islice(updates, 12) for batch in update for seed in batch["seed"]]
    assert seen == sorted(seen) and set(map(seen.count, range(seen[-1]))) == {6}  # without the two round ones
    both = as_processes(2, monkeypatch, lambda rank: taken(make_updates(folder, rank, 2, buffer_rows=200)[1], 6))
    assert [len(batch) for update in both[0] for batch in update] == [
        len(batch) for update in both[1] for batch in update
    ]
    assert {value // 100 for each in both for update in each[:1] for batch in update for value in batch} == {0, 1}


@pytest.mark.parametrize("damage", ["missing", "cut", "no parquet"])
def test_a_shard_that_cannot_be_read_is_named(damage, tmp_path):
    folder = write_shards(tmp_path)
    _, updates = make_updates(folder)
    shard = folder / "train-00004-of-00006.parquet"
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content[: len(content) // 2] if damage == "cut" else b"PAR1" + bytes(200))
    said = "no such file" if damage == "missing" else "cannot be read after row 0"
    with pytest.raises(InputError, match=f"^{shard}: {said}[^\n]*$"):
        taken(updates, 30)


def test_a_first_shard_that_cannot_be_read_is_named(tmp_path):
    folder = write_shards(tmp_path)
    (folder / "train-00000-of-00006.parquet").write_bytes(b"PAR1" + bytes(200))
    with pytest.raises(InputError, match="train-00000-of-00006.parquet: cannot be read"):
        make_updates(folder)


def test_no_more_is_held_than_two_buffers(tmp_path):
    _, updates = make_updates(write_shards(tmp_path))
    sizes = []
    for _ in islice(updates, 30):
        held = sum(map(len, updates.planned))
        assert held <= 20
        sizes.append(len(json.dumps(updates.state_dict())))
    assert max(sizes) < 400


def test_a_process_that_ends_waits_for_no_buffer(tmp_path, monkeypatch):
    _, updates = make_updates(write_shards(tmp_path))
    ahead = streams.Ahead(streams.Reader(updates.rows, 0), 15)
    monkeypatch.setattr(streams, "main_thread", lambda: threading.Thread())  # as one that has ended
    ahead.start()
    assert ahead.rows() == ([], [])


def test_a_row_of_a_stream_that_is_too_large_has_no_other_rows_name(tmp_path):
    job, updates = make_updates(write_shards(tmp_path))
    (batch, *_) = next(iter(updates))
    said = out_of_memory_message(job, [batch], updates, "update 1")
    assert said.startswith(f"out of memory in update 1: {len(batch['rows'])} rows") and "longest" not in said


def test_workers_change_nothing_and_end_with_their_updates(tmp_path):
    folder = write_shards(tmp_path)
    assert exit_code_of_worker(lambda: make_updates(folder, workers=1)[1]) == 0
    assert taken(make_updates(folder, workers=1)[1], 9) == taken(make_updates(folder)[1], 9)


def test_a_stream_without_a_row_that_can_be_used(tmp_path):
    folder = write_shards(tmp_path)

    def none(job, split):
        return usable(job, split.select([]))

    with pytest.raises(InputError, match="not one row of 6 shards can be used; the first is .*parquet"):
        taken(make_updates(folder, rows=none)[1], 1)
    with pytest.raises(InputError, match="parquet, row 0: is round.*--data.bad_rows skip"):
        taken(make_updates(folder, bad_rows="refuse")[1], 1)


def test_what_a_stream_has_not_is_said(tmp_path):
    folder = write_shards(tmp_path / "data")
    for options, said in (
        ({"buffer_rows": 11}, "data.buffer_rows 11 is less than an update may have, 12 rows"),
        ({"fold": "1/3"}, "data.streaming: a stream has no number of rows to take a part of"),
        ({"max_train_samples": 5}, "data.streaming: a stream has no number of rows to take a part of"),
        ({"path": None}, "data.streaming: a stream is for data of one's own"),
        ({"group_column": "value"}, "data.streaming: a stream has rows of a group in several places"),
    ):
        with pytest.raises(InputError, match=said):
            make_updates(folder, **options)
    with pytest.raises(InputError, match="data.streaming: a stream has no length; --run.max_steps"):
        load(make_job(Data(path=str(folder), streaming=True)), None, inputs={"value": "value"})
    state = make_updates(folder, processes=2)[1].state_dict()
    with pytest.raises(InputError, match="the stream was read by 2 processes, not 1; use as many"):
        make_updates(folder)[1].load_state_dict(state)
    (folder / "validation.parquet").unlink()
    with pytest.raises(InputError, match="no files of a validation split, and of a stream.* no share can be held out"):
        make_updates(folder)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/train.csv").write_text("value\n1\n")
    with pytest.raises(InputError, match="data.streaming reads .parquet, .json, .*; there are 1 .csv"):
        make_updates(tmp_path / "tables")


def test_a_stream_is_not_divided_and_its_classes_are_not_put_right(tmp_path):
    """What a table is divided by, a column or classes' names, is the reader's of whole tables: it is refused."""
    import datasets

    rows = {"value": [0, 1, 2, 3], "split": ["train", "train", "val", "test"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "all.parquet")
    for path in (tmp_path, tmp_path / "all.parquet"):
        with pytest.raises(InputError, match="no files of a validation split"):
            make_updates(path)
    for name, classes in {"train": ["no", "yes"], "extra": ["yes", "no"], "validation": ["no", "yes"]}.items():
        features = datasets.Features({"value": datasets.Value("int64"), "label": datasets.ClassLabel(names=classes)})
        (tmp_path / "classes").mkdir(exist_ok=True)
        part = datasets.Dataset.from_dict({"value": [0, 1], "label": [0, 1]}, features=features)
        part.to_parquet(tmp_path / f"classes/{name}.parquet")
    with pytest.raises(InputError, match="number the classes of 'label' in different orders"):
        make_updates(tmp_path / "classes", train_split="train+extra")


@dataclass
class Labelled(LabelData, Bounded):
    pass


def read_stream_labels(folder, **options):
    """The classes of a stream, its job, and the labels that each of its blocks is given."""
    data = Labelled(path=str(folder), streaming=True, **options)
    job = make_job(data, max_steps=9)
    splits = load(job, None, inputs={"value": "value"}, targets=data.targets)
    labels, references = read_labels(job, splits)
    stream = splits["train"].stream
    blocks = (stream.split(shard, 0, next(stream.tables(shard))) for shard in range(len(stream.shards)))
    return job, labels, [references["train"](block) for block in blocks]


def write_labels(folder, train, validation, feature=None):
    import datasets

    features = datasets.Features({"value": datasets.Value("int64"), "label": feature}) if feature else None
    for name, labels in [(f"train-{i}", labels) for i, labels in enumerate(train)] + [("validation", validation)]:
        columns = {"value": list(range(len(labels))), "label": labels}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")


def undecodable(rows):
    """Nothing of shard 2 can be decoded."""
    rows, _, decoded = decode_rows(rows, lambda row: 1 / (row["value"] // 100 - 2), "skip")
    return collate(rows) | {"decoded": decoded}


def test_rows_that_cannot_be_decoded_are_left_out_and_counted(tmp_path):
    """A piece of which none can be computes a row of the beginning, which does not count."""
    folder = write_shards(tmp_path, (1, 2, 8))
    job, updates = make_updates(folder, buffer_rows=8, batches=1, collate=undecodable, batch_size=2)
    batches = [batch for update in islice(updates, 12) for batch in update]
    counting = [value for batch in batches if batch.get("counts", True) for value in batch["value"]]
    assert {value // 100 for value in counting} == {1} and any(not batch.get("counts", True) for batch in batches)
    note_decoded(job, [each for batch in batches for each in batch["decoded"]])
    say_decoded(job)
    facts = {fact["fact"]: (fact["split"], fact["rows"]) for fact in job.facts[-2:]}
    assert facts == {"left out, cannot be decoded": ("train", 7), "rows left out": ("train", 3)}


def test_the_classes_of_a_stream(tmp_path):
    """Of its type, or of validation; a label that is none of them is a problem of its row."""
    import datasets

    write_labels(tmp_path, [[1, 0], [2, 0]], [0], datasets.ClassLabel(names=["a", "b", "c"]))
    job, labels, blocks = read_stream_labels(tmp_path)
    assert (labels.names, blocks) == (["a", "b", "c"], [["b", "a"], ["c", "a"]])
    assert "classes of a stream" not in {fact["fact"] for fact in job.facts}
    write_labels(tmp_path, [["x"], ["z", " y "]], ["y", "x"])
    job, labels, blocks = read_stream_labels(tmp_path)
    assert (labels.names, blocks) == (["x", "y"], [["x"], ["z", "y"]])
    assert "'z' is not one of the classes x, y" in labels.problem("z")
    line = "train: the classes of label are taken to be those of validation: x, y"
    assert line in {fact["line"] for fact in job.facts}
    with pytest.raises(InputError, match="a stream is not counted before; data.class_weights can be given by name"):
        read_stream_labels(tmp_path, class_weights="balanced")


def test_several_labels_of_a_stream(tmp_path):
    """Rows of 0 and 1 are such in every block, and lists of classes are no rows of 0 and 1."""
    write_labels(tmp_path, [[[0, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 1]]], [[1, 1, 0], [0, 0, 1]])
    _, labels, blocks = read_stream_labels(tmp_path, problem_type="multi_label")
    assert (labels.names, blocks) == (["0", "1", "2"], [[["1", "2"], ["0"]], [[], None]])
    assert "should be a list of labels" in labels.problem(None)
    write_labels(tmp_path, [[["a"], ["a", "b"]], [["b"]]], [["a"], ["b"]])
    _, labels, blocks = read_stream_labels(tmp_path, problem_type="multi_label")
    assert (labels.names, blocks) == (["a", "b"], [[["a"], ["a", "b"]], [["b"]]])
    write_labels(tmp_path, [[[0, 1], [1]], [[0, 1]]], [[0], [1, 0]])
    _, labels, blocks = read_stream_labels(tmp_path, problem_type="multi_label")
    assert (labels.names, blocks) == (["0", "1"], [[["0", "1"], ["1"]], [["0", "1"]]])


def test_archives_of_webdataset(tmp_path):
    import tarfile

    for shard, name in enumerate(["train-000", "train-001", "validation-000"]):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for i in range(6):
                picture = png(Image.new("RGB", (4, 4), (i, shard, 0)))
                for ending, content in (("png", picture), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{shard}{i:03d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    data = Pictures(path=str(tmp_path), streaming=True, batch_size=4, buffer_rows=12)
    job = make_job(data, max_steps=9)
    splits = load(job, None, inputs={"image": "image"}, targets=data.targets)
    labels, references = read_labels(job, splits)
    rows = image_rows(job, splits["train"], labels, references["train"])
    updates = train_loader(job, rows, partial(look, data=data))
    pixels = sorted(pixel for update in islice(updates, 3) for batch in update for pixel in batch["pixels"])
    assert pixels == sorted((i, shard, str(i % 2)) for shard in range(2) for i in range(6))


@dataclass
class Pictures(LabelData, ImageData):
    pass


def look(rows, *, data):
    rows, images, decoded = load_images(rows, data, 3)
    pairs = zip(images, rows, strict=True)
    pixels = [(*image.getpixel((0, 0))[:2], row["reference"]) for image, row in pairs]
    return {"pixels": pixels, "size": len(rows), "decoded": decoded}
