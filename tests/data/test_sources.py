"""What is fetched of data sets of the hub: the splits that are asked for, once."""

import datasets
import pytest

from d2v.config import Data
from d2v.data.sources import read
from d2v.errors import InputError
from tests.fake_hub import fake_hub  # noqa: F401 (a fixture)
from tests.tiny import name_splits


def make_set(hub, name="someone/set", splits=("train", "validation", "test")):
    """A data set of the hub, two files a split."""
    folder = hub.root / "datasets" / name
    (folder / "data").mkdir(parents=True)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split in splits:
        for part in (0, 1):
            rows = {"text": [f"{split} {part} {i}" for i in range(3)], "label": [0, 1, 1]}
            file = folder / f"data/{split}-0000{part}-of-00002.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return name


def fetched(hub):
    """The names of the files of data that were fetched since the last time."""
    names = [file.rpartition("/")[2] for file in hub.files if file.endswith(".parquet")]
    hub.files.clear()
    return names


def test_only_the_splits_that_are_asked_for_are_fetched(fake_hub, capsys):  # noqa: F811
    data = Data(path=make_set(fake_hub))
    source = read(data)
    assert list(source) == ["train", "validation", "test"] and fetched(fake_hub) == []
    test = source["test"]
    assert test["text"][:2] == ["test 0 0", "test 0 1"] and len(test) == 6
    assert test.features["label"].names == ["no", "yes"]
    assert fetched(fake_hub) == ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]
    assert capsys.readouterr().out == "someone/set: test is fetched and prepared, 2 files\n"
    again = read(data)
    assert again["test"]["text"][:] == test["text"][:] and fetched(fake_hub) == [] and not capsys.readouterr().out
    assert len(again["train"]) == 6
    assert fetched(fake_hub) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]

    # Without a network: what was asked for is there, under the same names; the rest is said.
    fake_hub.cut = True
    offline = read(data)
    assert list(offline) == list(source)
    assert offline["test"]["text"][:] == test["text"][:] and offline["train"].features == test.features
    with pytest.raises(InputError, match=r"^someone/set: neither a folder .* hub cannot be reached; --mode prep"):
        offline["validation"]
    with pytest.raises(InputError, match=r"^someone/other: neither a folder .* hub cannot be reached; --mode prep"):
        read(Data(path="someone/other"))


def test_a_folder_with_a_card_is_prepared_by_split_too(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"text": [split] * 4}).to_parquet(folder / f"{split}.parquet")
    name_splits(folder, ["train", "test"])
    (folder / "train.parquet").write_bytes(b"damaged")
    source = read(Data(path=str(folder)))
    assert list(source) == ["train", "test"] and source["test"]["text"][:] == ["test"] * 4
    with pytest.raises(InputError, match="set: not a folder, file or hub id that can be read"):
        source["train"]
    datasets.Dataset.from_dict({"text": ["new"]}).to_parquet(folder / "test.parquet")
    assert read(Data(path=str(folder)))["test"]["text"][:] == ["new"]
