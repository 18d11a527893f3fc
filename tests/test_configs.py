"""Every YAML of every recipe: it loads strictly, its header's command works, it trains on data like those it names."""

import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.recipe import load_recipe
from d2v.config import parse
from tests.helpers import ROOT, parse_command, tiny_recogniser
from tests.tiny import flac, texts, tones

CONFIGS = {f"{path.parent.name}-{path.stem}": path for path in sorted(ROOT.glob("recipes/configs/**/*.yaml"))}
EVERY_CONFIG = pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS)


def commands(path: Path) -> list[str]:
    """The commands of a YAML's header: indented lines; one that begins with an option says what to add to the first."""
    lines = [line[1:].strip() for line in path.read_text("utf-8").splitlines() if line.startswith("#   ")]
    return [line if line.startswith("accelerate") else f"{lines[0]} {line}" for line in lines]


@EVERY_CONFIG
def test_header(path):
    found = commands(path)
    assert found, "no command"
    for command in found:
        name, config = parse_command(command)
        assert name == path.parent.name
        assert f"--config recipes/configs/{name}/{path.name}" in command or path.stem == "demo"
        alone = parse(load_recipe(name).Config, ["--config", str(path)])
        assert (config.model, config.arch, config.optim) == (alone.model, alone.arch, alone.optim)
    assert re.search(r"^# Source: ", path.read_text("utf-8"), re.MULTILINE)


@EVERY_CONFIG
def test_a_misspelt_key_is_refused(path, tmp_path):
    (tmp_path / "wrong.yaml").write_text(path.read_text("utf-8") + "  misspelt: 1\n", "utf-8")
    with pytest.raises(ValueError, match="misspelt"):
        parse(load_recipe(path.parent.name).Config, ["--config", str(tmp_path / "wrong.yaml")])


SPEAKERS = ["george", "jackson", "theo", "yweweler"]  # of the Free Spoken Digit Dataset


def speech(split: str, i: int) -> dict:
    """A row with the columns that recipes for speech look for by default."""
    (text,) = texts(1, seed=i)
    sound = {"bytes": flac(tones(text, seed=i)), "path": f"{split}-{i}.flac"}
    turns = [{"start": 0.0, "end": len(text) / 10, "speaker": name, "speaker_slot": i} for i, name in enumerate("ab")]
    labels = {"label": "ab"[i % 2], "labels": ["ab"[i % 2]], "digit": i % 2}
    return {"audio": sound, "text": text.upper(), "speaker": SPEAKERS[i % 4], "turns": turns} | labels


def librispeech(split: str, i: int) -> dict:
    """A row with the columns of LibriSpeech on the hub."""
    numbers = {"speaker_id": 100 + i, "chapter_id": 1000 + i, "id": f"{100 + i}-{1000 + i}-0000"}
    return {"file": f"{split}-{i}.flac"} | speech(split, i) | numbers


LIBRISPEECH_SPLITS = (
    "train.clean.100 train.clean.360 train.other.500 validation.clean validation.other test.clean test.other"
)
SOURCES = {  # by data.path: what makes a row, and the splits of the configurations that there are
    "openslr/librispeech_asr": (librispeech, {"all": LIBRISPEECH_SPLITS.split()}),
    None: (speech, {None: ["train", "validation", "test"]}),
}


def write_like(source: str | None, name: str | None, folder: Path) -> None:
    """A folder that `datasets` reads as it reads the hub's: the same columns, configuration and splits, few rows."""
    import datasets

    row, configurations = SOURCES[source]
    folder.mkdir()
    for split in configurations[name]:
        table = datasets.Dataset.from_list([row(split, i) for i in range(8)])
        table.cast_column("audio", datasets.Audio(sampling_rate=16_000)).to_parquet(folder / f"{split}.parquet")
    files = [{"split": split, "path": f"{split}.parquet"} for split in configurations[name]]
    front = yaml.safe_dump({"configs": [{"config_name": name or "default", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{front}---\n", "utf-8")


@pytest.fixture
def fresh_accelerator():
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # the next run may ask for another precision
    GradientState._reset_state()


@EVERY_CONFIG
def test_two_updates(path, tmp_path, capsys, fresh_accelerator):
    recipe = load_recipe(path.parent.name)
    asked = parse(recipe.Config, ["--config", str(path)])
    args = ["--config", str(path), "--run.max_steps", "2", "--run.eval_every", "2", "--run.tracker", "null"]
    args += ["--run.out", str(tmp_path / "run"), "--data.path", str(tmp_path / "data")]
    if asked.model:
        args += ["--model", str(tiny_recogniser(tmp_path / "model"))]
        (tmp_path / "model" / "vocab.json").unlink()  # the released models have heard, but never written
    write_like(asked.data.path, asked.data.name, tmp_path / "data")
    splits = [*asked.data.train_split.split("+"), asked.data.validation_split, asked.data.test_split]
    assert {f"{split}.parquet" for split in splits} <= {file.name for file in (tmp_path / "data").iterdir()}

    results = recipe.main(parse(recipe.Config, args))
    # Rows; where speakers are verified, trials: as many of one of the four speakers as of two, here 4 (held out: 2).
    examples = 4 if getattr(asked.data, "held_out_speakers", []) else 8
    assert (results["split"], results["examples"]) == ("test", examples)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [entry["step"] for entry in log] == [2, 2] and log[0]["skipped"] == 0 and log[0]["loss"] > 0
