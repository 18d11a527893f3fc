"""Sources of data: files and folders to splits with the columns that a recipe asks for."""

import json
import shutil
import unicodedata

import pytest

from d2v.config import Data
from d2v.data.audio import AudioData
from d2v.data.load import choose_splits, read
from d2v.errors import InputError
from d2v.processors.audio import load_audio
from tests.helpers import make_job
from tests.tiny import flac, speech, tones

COLUMNS = {"audio": "audio", "text": "text"}


def complaint(function, *args, **options):
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    return str(caught.value)


def table(rows):
    """Splits of this many rows each; `number` tells rows apart."""
    import datasets

    def split(name, count):
        numbers = [f"{name}{i}" for i in range(count)]
        return datasets.Dataset.from_dict({"audio": numbers, "text": numbers})

    return {name: split(name, count) for name, count in rows.items()}


def choose(source, data, seed, columns, training):
    """`choose_splits` for a job of this data."""
    return choose_splits(make_job(data, "train" if training else "evaluate", seed=seed), source, columns)


def chosen(rows, training=True, seed=0, **options):
    """Role -> the texts that `choose_splits` gives it."""
    splits = choose(table(rows), Data(**options), seed, COLUMNS, training=training)
    return {role: split.column("text") for role, split in splits.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with the sound files ab.flac and deep/ca.wav."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    for text, name in (("ab", "ab.flac"), ("ca", "deep/ca.wav")):
        (folder / name).write_bytes(flac(tones(text)))
    return folder


def test_folder_of_parquet(tmp_path):
    import datasets

    splits = read(Data(path=str(speech(tmp_path / "speech", train=3, test=2))))
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "test": 2}
    assert splits["train"][0]["id"] == "train-0"
    assert len(load_audio(splits["test"][1]["audio"])) == 1600 * len(splits["test"][1]["text"])

    # What `datasets` stores as Audio stays undecoded, so nothing asks for its decoder.
    rows = {"audio": [{"bytes": flac(tones("ab")), "path": "x.flac"}], "text": ["ab"]}
    typed = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(16_000))
    (tmp_path / "typed").mkdir()
    typed.to_parquet(tmp_path / "typed/train.parquet")
    split = read(Data(path=str(tmp_path / "typed")))["train"]
    assert split.features["audio"].decode is False
    assert split[0]["audio"] == rows["audio"][0]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_single_file(tmp_path, clips, suffix):
    import datasets

    rows = {"audio": [str(clips / "ab.flac"), str(clips / "deep/ca.wav")], "text": ["ab", "c, a"]}
    path = tmp_path / f"rows{suffix}"
    whole = datasets.Dataset.from_dict(rows)
    if suffix == ".parquet":
        whole.to_parquet(path)
    elif suffix.startswith(".json"):
        whole.to_json(path)
    else:
        whole.to_csv(path, sep="\t" if suffix == ".tsv" else ",")
    split = read(Data(path=str(path)))["train"]
    assert split.column_names == ["audio", "text"] and list(split["text"]) == rows["text"]
    assert [len(load_audio(audio)) for audio in split["audio"]] == [3200, 3200]


@pytest.mark.parametrize("metadata", [None, "metadata.csv", "metadata.jsonl"])
def test_folder_of_sound_files(tmp_path, clips, metadata):
    for split in ("train", "test"):
        shutil.copytree(clips, tmp_path / split)
        if metadata == "metadata.csv":
            (tmp_path / split / metadata).write_text("file_name,text\ndeep/ca.wav,ca\nab.flac,ab\n")
        elif metadata:
            lines = [{"file_name": "deep/ca.wav", "text": "ca"}, {"file_name": "ab.flac", "text": "ab"}]
            (tmp_path / split / metadata).write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = read(Data(path=str(tmp_path)))
    assert splits.keys() == {"train", "test"}
    names = ["deep/ca.wav", "ab.flac"] if metadata else ["ab.flac", "deep/ca.wav"]
    for name, split in splits.items():
        assert list(split["audio"]) == [str(tmp_path / name / file) for file in names]
        assert ("text" in split.column_names) == bool(metadata)


def test_folder_without_splits_is_not_scored_on_what_it_learns_from(clips):
    source = read(Data(path=str(clips)))
    assert [len(split) for split in source.values()] == [2]
    only = {"audio": "audio"}
    files = choose(source, Data(), 0, only, training=False)["test"].column("audio")
    assert [path.rpartition("/")[2] for path in files] == ["ab.flac", "ca.wav"]
    splits = choose(source, Data(validation_share=0.5), 0, only, training=True)
    assert "test" not in splits and {splits["train"][0]["audio"], splits["validation"][0]["audio"]} == set(files)


def test_what_cannot_be_read_is_named(tmp_path):
    missing = tmp_path / "rows.parquet"
    assert complaint(read, Data(path=str(missing))) == f"{missing}: no such file"
    other = tmp_path / "rows.xlsx"
    other.write_text("")
    assert complaint(read, Data(path=str(other))).startswith(
        f"{other}: should be a folder, or a file that ends in .parq"
    )
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    message = complaint(lambda: read(Data(path=str(broken)))["train"])
    assert message.startswith(f"{broken}: not readable as parquet (Parquet magic bytes not found in footer")
    assert complaint(read, Data(path="nobody/nothing")).startswith(
        "nobody/nothing: neither a folder nor a file, not in"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert complaint(read, Data(path=str(empty))).startswith(f"{empty}: not a folder, file or hub id")
    (empty / "a.wav").write_bytes(b"")
    (empty / "metadata.csv").write_text("name,text\nb.wav,b\n")
    assert complaint(read, Data(path=str(empty))) == (
        f"{empty}/metadata.csv: no column 'file_name'; there are name, text"
    )


def test_what_runs_and_systems_leave_is_no_data(tmp_path, clips):
    shutil.copy(clips / "ab.flac", tmp_path / "a.flac")
    for name in ("._a.flac", ".trash/b.flac", "__MACOSX/c.flac", ".ipynb_checkpoints/d.flac", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no sound")
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "environment.json", "predictions.jsonl", "b.flac"):
        (tmp_path / "run" / name).write_text('{"id": "a.flac"}\n')
    assert list(read(Data(path=str(tmp_path)))["train"]["audio"]) == [str(tmp_path / "a.flac")]


def test_splits_by_name():
    rows = {"train": 3, "validation": 2, "test": 1, "other": 2}
    found = chosen(rows)
    assert {role: len(texts) for role, texts in found.items()} == {"train": 3, "validation": 2, "test": 1}
    assert chosen(rows, training=False) == {"test": ["test0"]}
    found = chosen(rows, train_split="train+other", test_split="validation", validation_split="test")
    assert found["train"] == ["train0", "train1", "train2", "other0", "other1"]
    assert (found["validation"], found["test"]) == (["test0"], ["validation0", "validation1"])


def test_held_out_rows_are_seeded_and_not_learnt_from():
    found = chosen({"train": 40, "test": 2}, validation_share=0.25)
    assert len(found["validation"]) == 10 and len(found["train"]) == 30
    assert not set(found["train"]) & set(found["validation"]) and len(set(found["train"] + found["validation"])) == 40
    assert chosen({"train": 40, "test": 2}, validation_share=0.25) == found
    assert chosen({"train": 40, "test": 2}, validation_share=0.25, seed=1)["validation"] != found["validation"]
    assert "test" not in chosen({"train": 40})


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0])
def test_impossible_share(share):
    assert "data.validation_share should be between 0 and 1" in complaint(chosen, {"train": 9}, validation_share=share)


def test_too_few_rows_to_hold_some_out():
    assert complaint(chosen, {"train": 1}) == "demo, train: 1 rows are too few to hold out a share of 0.1"


def test_at_most_so_many_rows():
    rows = {"train": 50, "validation": 50, "test": 50}
    most = {"max_train_samples": 5, "max_validation_samples": 50, "max_test_samples": 99}
    found = chosen(rows, **most)
    assert [len(texts) for texts in found.values()] == [5, 50, 50]
    assert found["test"] == [f"test{i}" for i in range(50)]  # whole: in its own order
    assert found == chosen(rows, **most) and found["train"] != chosen(rows, seed=1, **most)["train"]
    assert found["train"] != [f"train{i}" for i in range(5)]  # drawn, as files are often sorted
    assert "data.max_train_samples should be at least 1, not 0" in complaint(chosen, rows, max_train_samples=0)


def test_missing_splits_and_columns_are_named():
    rows = {"train": 3, "test": 2}
    assert complaint(chosen, {"dev": 3}, path="x") == "x: no split 'train' (data.train_split); there are dev"
    assert complaint(chosen, {"dev": 3, "a": 1}, training=False) == (
        "demo: no split 'test' (data.test_split); there are dev, a"
    )
    assert "no split 'train+more' (data.train_split)" in complaint(chosen, rows, train_split="train+more")
    # The recipe's own name may be absent; one that somebody asked for may not.
    for role in ("validation", "test"):
        assert f"no split 'devv' (data.{role}_split)" in complaint(chosen, rows, **{f"{role}_split": "devv"})
    message = complaint(choose, table(rows), Data(path="x"), 0, {"text": "sentence"}, training=True)
    assert message == "x, train: no column 'sentence' (data.text_column); there are audio, text"
    assert complaint(chosen, {"train": 3, "test": 0}) == "demo, test: no rows"


def test_a_folder_has_splits_of_any_name(tmp_path):
    for name in ("train", "out_of_domain", "test.other"):  # a name is a word, or words with points between them
        for part in (0, 1):
            table({name: 2 + part})[name].to_parquet(tmp_path / f"{name}-0000{part}-of-00002.parquet")
    splits = read(Data(path=str(tmp_path)))
    assert {name: len(split) for name, split in splits.items()} == {"train": 5, "out_of_domain": 5, "test.other": 5}


def test_rows_are_those_that_datasets_would_sample():
    """Figures measured while it did the sampling are of the same rows."""
    whole = table({"train": 41})["train"]
    halves = whole.train_test_split(0.1, seed=3)
    splits = choose({"train": whole}, Data(), 3, COLUMNS, training=True)
    assert splits["train"].column("text") == list(halves["train"]["text"])
    assert splits["validation"].column("text") == list(halves["test"]["text"])
    few = choose({"test": whole}, Data(max_test_samples=7), 5, COLUMNS, training=False)["test"]
    assert few.column("text") == list(whole.shuffle(seed=5).select(range(7))["text"])


def test_a_row_is_called_by_its_number_in_the_users_file():
    """Whatever was sampled, held out or joined: the texts of `table` say their own split and number."""
    source = table({"train": 30, "other": 20, "test": 9})
    most = {"max_train_samples": 25, "max_validation_samples": 3, "max_test_samples": 4}
    splits = choose(source, Data(train_split="train+other", **most), 0, COLUMNS, training=True)
    assert {name: len(split) for name, split in splits.items()} == {"train": 25, "validation": 3, "test": 4}
    for split in splits.values():
        texts = split.column("text")
        for i, text in enumerate(texts):
            name = text.rstrip("0123456789")
            number = int(text.removeprefix(name))
            assert split.where(i) == f"{name}, row {number}" and split.number(i) == number
            assert split[i]["text"] == text
        chosen = split.select([2, 0])
        assert chosen.column("text") == [texts[2], texts[0]] and chosen.where(0) == split.where(2)
        assert [row["text"] for row in split.iterate(["text"])] == texts


def test_a_revision_of_the_hub_stands_behind_an_at(monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *args, revision: asked.append((*args, revision)))
    monkeypatch.setattr("datasets.load_dataset", lambda *args, revision: asked.append((*args, revision)) or {})
    for path in ("nyu-mll/glue", "nyu-mll/glue@refs/convert/parquet"):
        read(Data(path=path, name="cola"))
    assert set(asked) == {("nyu-mll/glue", "cola", None), ("nyu-mll/glue", "cola", "refs/convert/parquet")}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_files_are_found_in_either_form_of_unicode(tmp_path, clips, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = [unicodedata.normalize(form, name) for name in ("né 1.flac", "가 2.flac")]
    for name in names:
        shutil.copy(clips / "ab.flac", tmp_path / name)
    lines = [f"{unicodedata.normalize(other, name)},ab" for name in names]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *lines]), "utf-8")
    source = read(AudioData(path=str(tmp_path)))
    assert [load_audio(audio)[:1].shape for audio in source["train"]["audio"]] == [(1,), (1,)]
    assert any("accents" in line for _, line, _ in source.remarks)


def test_shards_that_are_not_there_are_named(tmp_path):
    for name in ("train-00000-of-00003", "train-00002-of-00003", "val-0-of-1"):
        (tmp_path / f"{name}.csv").write_text("text,label\na,b\n", "utf-8")
    remarks = [line for fact, line, _ in read(Data(path=str(tmp_path))).remarks if fact == "files missing"]
    assert remarks == ["train: 1 of 3 files are not there; the first is train-00001-of-00003.csv"]
