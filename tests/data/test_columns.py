"""Columns under the names that data sets use, and the files that tables name."""

import datasets
import pytest

from benchmarks.recipe import load_recipe
from d2v.config import Data, Run, named_model
from d2v.data.audio import AudioData
from d2v.data.columns import unlabelled
from d2v.data.image import ImageData
from d2v.data.labels import LabelData
from d2v.data.load import choose_splits, read
from d2v.data.text import TextData
from d2v.data.token_classification import TokenData
from d2v.data.verification import TrialData
from d2v.errors import InputError
from d2v.processors.audio import load_audio
from tests.helpers import make_job, make_split
from tests.tiny import flac, tones


def columns(data, needed, table):
    """What a recipe that needs these columns finds in a table, and what is said."""
    job = make_job(data, "evaluate")
    source = {"test": datasets.Dataset.from_dict(table) if isinstance(table, dict) else table}
    splits = choose_splits(job, source, {name: getattr(data, f"{name}_column") for name in needed})
    return splits["test"], [fact["line"] for fact in job.facts if fact["fact"] == "column"]


SpeechData = load_recipe("asr_ctc").SpeechData
TASKS = {"asr": (SpeechData, "text"), "classes": (LabelData, "label"), "tags": (TokenData, "tags")}
TASKS |= {"speakers": (TrialData, "speaker"), "sound": (AudioData, "audio"), "images": (ImageData, "image")}
TASKS |= {"words": (TokenData, "tokens"), "texts": (load_recipe("text_classification").ClassificationData, "text")}


@pytest.mark.parametrize(
    ("task", "name", "others"),
    [
        ("asr", "transcription", []),
        ("asr", "sentence", ["path", "client_id", "age"]),
        ("asr", "transcript", []),
        ("asr", "normalized_text", ["raw_text"]),
        ("asr", "Text", ["transcription"]),
        ("sound", "file", []),
        ("sound", "path", ["sentence"]),
        ("images", "img", ["fine_label"]),
        ("classes", "fine_label", ["coarse_label"]),
        ("classes", "intent_class", ["lang_id"]),
        ("classes", "labels", []),
        ("classes", "Category", []),
        ("tags", "ner_tags", ["tokens"]),
        ("tags", "upos", ["tokens", "xpos", "lemmas"]),
        ("speakers", "client_id", []),
        ("speakers", "speaker_id", ["gender"]),
        ("words", "words", []),
        ("texts", "sentence", ["idx"]),
        ("texts", "review", []),
    ],
)
def test_columns_under_the_names_that_data_sets_use(task, name, others):
    kind, purpose = TASKS[task]
    data = kind()
    split, said = columns(
        data, [purpose], {name: [["x"] if task == "tags" else "x"], **{each: ["y"] for each in others}}
    )
    own = getattr(data, f"{purpose}_column")
    assert split.column(own) in (["x"], [["x"]])
    assert said == [f"column {name!r} is used as {own!r} (data.{purpose}_column names another one)"]


def test_the_recipes_own_name_comes_first_and_a_given_one_alone():
    table = {"text": ["x"], "sentence": ["y"]}
    split, said = columns(SpeechData(), ["text"], table)
    assert split.column("text") == ["x"] and said == []
    split, said = columns(SpeechData(text_column="sentence"), ["text"], table)
    assert split.column("sentence") == ["y"] and said == []
    with pytest.raises(InputError, match=r"no column 'words' \(data.text_column\); there are text, sentence"):
        columns(SpeechData(text_column="words"), ["text"], table)


def test_several_columns_that_may_be_meant_are_named():
    with pytest.raises(InputError, match=r"no column 'text'; transcription, normalized_text may be meant"):
        columns(SpeechData(), ["text"], {"transcription": ["x"], "normalized_text": ["y"]})
    with pytest.raises(InputError, match=r"no column 'tags'; ner_tags, pos_tags may be meant \(data.tags_column\)"):
        columns(TokenData(), ["tags"], {"ner_tags": [["x"]], "pos_tags": [["x"]]})


def test_columns_by_their_type():
    label = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"coarse": label, "sound": datasets.Value("string"), "words": datasets.List(label)})
    table = datasets.Dataset.from_dict({"coarse": [1], "sound": ["x"], "words": [[0]]}, features=features)
    assert columns(LabelData(), ["label"], table)[0].column("label") == [1]
    assert columns(TokenData(), ["tags"], table)[0].column("tags") == [[0]]
    two = table.add_column("fine", [0], feature=label)
    with pytest.raises(InputError, match="coarse, fine may be meant"):
        columns(LabelData(), ["label"], two)


# Files that a table names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A table's folder with clips/a.wav, and a working directory with clips/a.wav and b.wav."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for place in ("set/clips/a.wav", "work/clips/a.wav", "work/b.wav"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(flac(tones("a")))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("column", "name", "found"),
    [
        ("audio", "clips/a.wav", "set/clips/a.wav"),
        ("audio", "a.wav", "set/clips/a.wav"),
        ("audio", "a", "set/clips/a.wav"),
        ("file", "clips/a.wav", "set/clips/a.wav"),
        ("recording_name", "clips/a.wav", "set/clips/a.wav"),
        ("audio", "clips/missing.wav", "set/clips/missing.wav"),
        ("audio", "b.wav", "b.wav"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_are_relative_to_the_table_first(folder, suffix, column, name, found):
    table = datasets.Dataset.from_dict({column: [name, name], "text": ["clips", "b"]})
    path = folder / f"rows{suffix}"
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[suffix](path)
    source = read(AudioData(path=str(path)))
    expected = found if found == "b.wav" else str(folder.parent / found)
    assert source["train"]["audio"][:] == [expected] * 2 and source["train"]["text"][:] == ["clips", "b"]
    if found != "b.wav":
        assert source["train"]["id"][:] == [name] * 2  # as written, for whoever joins predictions with the table
    lines = [line for fact, line, _ in source.remarks if fact == "files"]
    assert any("where the command runs, such as b.wav" in line for line in lines) == (found == "b.wav")


def test_absolute_and_empty_names_stay(folder):
    other = str(folder.parent / "work/b.wav")
    (folder / "rows.csv").write_text(f"id,audio\n1,clips/a.wav\n2,{other}\n3,\n4,missing.wav\n")
    split = read(AudioData(path=str(folder / "rows.csv")))["train"]
    assert split["audio"][:] == [str(folder / "clips/a.wav"), other, "", str(folder / "missing.wav")]
    assert split["id"][:] == ["1", "2", "3", "4"]


def test_a_variable_that_is_not_set_is_no_demo():
    with pytest.raises(InputError, match="data.path is empty, such as a variable that is not set"):
        Data(path=" ")


def test_addresses_are_of_files_here_or_of_the_hub(folder):
    assert Data(path=f"file://{folder}/a%20b.csv").path == f"{folder}/a b.csv"
    for address in ("s3://bucket/rows", "https://example.org/rows.csv", "hf://datasets/a/b"):
        with pytest.raises(InputError, match=f"data.path {address}: should be a file or folder here, or the hub id"):
            Data(path=address)
    with pytest.raises(InputError, match="is not of the hub, and has no revision 'main'"):
        read(AudioData(path=f"{folder}@main"))


def test_a_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert Run(out="~/run").out == str(folder.parent / "run") and named_model("~/m", Data()) == str(folder.parent / "m")
    assert Data(path="~/set").path == str(folder)
    assert len(read(AudioData(path="~/set"))["train"]) == 1


@pytest.mark.parametrize("name", ["0001", "1", "x.wav"])
def test_a_file_name_of_digits_and_an_empty_row(folder, name):
    (folder / f"{name.removesuffix('.wav')}.wav").write_bytes(flac(tones("a")))
    (folder / "metadata.csv").write_text(f"file_name,text\n{name},null\n,\n")
    split = read(AudioData(path=str(folder)))["train"]
    assert split["text"][:] == ["null", ""] and split["audio"][1] == ""
    assert split["audio"][0] == str(folder / f"{name.removesuffix('.wav')}.wav")


def test_tables_that_name_no_files_are_not_the_data(folder):
    (folder / "notes.csv").write_text("day,who\n1,ann\n")
    assert len(read(AudioData(path=str(folder)))["train"]) == 1
    # A text that happens to be a file's name without its ending is not taken for one.
    (folder / "metadata.csv").write_text("file_name,text\nclips/a.wav,a\n")
    split = read(AudioData(path=str(folder)))["train"]
    assert split["audio"][:] == [str(folder / "clips/a.wav")] and split["text"][:] == ["a"]


def test_a_table_of_sounds_beside_a_sound(folder):
    sound = {"bytes": flac(tones("a")), "path": None}
    datasets.Dataset.from_dict({"audio": [sound] * 3, "text": list("abc")}).to_parquet(folder / "train.parquet")
    (folder / "notes.csv").write_text("day,who\n1,ann\n")
    source = read(AudioData(path=str(folder)))
    assert source["train"]["text"][:] == ["a", "b", "c"]
    ((_, line, _),) = source.remarks
    assert line.endswith("not read: 1 .csv, which name none of its files; the first is notes.csv")


def test_texts_of_tables_are_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.csv").write_text("text,label\nrows.csv,a\n")
    assert read(TextData(path=str(tmp_path / "rows.csv")))["train"].to_list() == [{"text": "rows.csv", "label": "a"}]


# Siblings: each was tried, and failed at first or did not.
NAMED = {
    "Windows' paths": {"metadata.csv": "file_name,text\nclips\\a.wav,x\nclips\\b.wav,y\n"},
    "with a dot": {"metadata.csv": "file_name,text\n./clips/a.wav,x\n./clips/b.wav,y\n"},
    "from the folder above": {"metadata.csv": "file_name,text\nset/clips/a.wav,x\nset/clips/b.wav,y\n"},
    "a table in each folder": {
        "one/metadata.csv": "file_name,text\na.wav,x\n",
        "one/a.wav": flac(tones("a")),
        "two/metadata.csv": "file_name,text\na.wav,y\n",
        "two/a.wav": flac(tones("b")),
    },
    "the same rows as CSV and TSV": {
        "rows.csv": "file,text\nclips/a.wav,x\nclips/b.wav,y\n",
        "rows.tsv": "file\ttext\nclips/a.wav\tx\n",
        "more.csv": "file,text\n",
    },
}


@pytest.mark.parametrize("case", NAMED)
def test_files_are_found_as_people_name_them(tmp_path, monkeypatch, case):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, content in {"clips/a.wav": flac(tones("a")), "clips/b.wav": flac(tones("b"))}.items() | NAMED[
        case
    ].items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    split = read(AudioData(path=str(tmp_path / "set")))["train"]
    assert split["text"][:] == ["x", "y"]
    assert [len(load_audio(path)) for path in split["audio"]] == [1600, 1600] and len(set(split["audio"][:])) == 2


def test_a_metadata_file_that_names_nothing_there_says_so(folder):
    (folder / "metadata.csv").write_text("file_name,text\nother/a.wav,x\n")
    with pytest.raises(
        InputError, match=r"metadata.csv: none of the files that it names is there, such as 'other/a.wav'"
    ):
        read(AudioData(path=str(folder)))


NONE, SOME = {"text": [], "answer_start": []}, {"text": ["a"], "answer_start": [0]}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (["-1", " -1", ""], "'label' is -1 in all rows"),
        (["", " "], "'label' is empty"),
        (["-1", "1"], None),
        ([-1, -1], "'label' is -1 in all rows"),
        ([NONE, NONE], "'label' is empty"),
        ([NONE, SOME], None),
        ([["a"], ["-1"]], None),
        ([{"speaker": "a"}], None),
    ],
)
def test_splits_without_labels_are_known(values, why):
    assert unlabelled(make_split("test", label=values), {"label": "label"}) == why
