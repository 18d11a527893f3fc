"""The command line: YAML and flags in, one dataclass or one line of complaint out."""

import errno
import re
import sys
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest.mock import Mock

import pytest
from torch.utils.data import DataLoader

from benchmarks.recipe import RECIPES, load_recipe
from d2v import cli, compare, convert, push, sweep
from d2v.cli import parse
from d2v.config import Data, Optim, Recipe, Run
from d2v.errors import InputError, Interrupted, Prepared
from d2v.training.job import to_yaml


@dataclass
class Config:
    """A recipe's configuration."""

    mode: Literal["train", "evaluate"] = "train"
    arch: dict[str, Any] = field(default_factory=dict)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3))
    run: Run = field(default_factory=lambda: Run(out="runs/test"))


def complaint(*args):
    """The one line that refuses these arguments."""
    with pytest.raises(InputError) as caught:
        parse(Config, list(args))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        (tmp_path / name).write_text(text, "utf-8")
        return str(tmp_path / name)

    return write


def test_defaults_are_the_recipes_own():
    assert parse(Config, []) == Config()


def test_flags_override_the_file_and_the_file_the_defaults(write):
    file = write("optim: {lr: 0.5, clip: 2.0}\nrun: {seed: 7}")
    for flag in (["--optim.lr", "0.25"], ["--optim.lr=0.25"]):
        for args in (["--config", file, *flag], [f"--config={file}", *flag], [*flag, "--config", file]):
            found = parse(Config, args)
            assert (found.optim.lr, found.optim.clip, found.run.seed) == (0.25, 2.0, 7)
            assert (found.run.out, found.optim.eps) == ("runs/test", 1e-8)
    # Of two files the later wins.
    found = parse(Config, ["--config", file, "--config", write("optim: {lr: 0.125}", "later.yaml")])
    assert (found.optim.lr, found.optim.clip) == (0.125, 2.0)


def test_numbers_of_yaml(write):
    # PyYAML itself reads 1e-4, without a point, as text.
    found = parse(Config, ["--config", write("optim: {lr: 1e-4, betas: [0.9, 0]}\narch: {layer_norm_eps: 1e-6}")])
    assert found.optim.lr == 1e-4 and found.optim.betas == (0.9, 0.0)
    assert found.arch == {"layer_norm_eps": 1e-6} and type(found.arch["layer_norm_eps"]) is float
    found = parse(Config, ["--optim.lr", "3e-5", "--arch.x", "2e-3", "--arch.conv_dim", "[8, 8]"])
    assert found.optim.lr == 3e-5 and found.arch == {"x": 2e-3, "conv_dim": [8, 8]}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("false", False)])
def test_booleans_and_nothing(text, value):
    found = parse(Config, ["--run.resume", text, "--run.tracker", "null", "--run.max_steps", "null"])
    assert found.run.resume is value and found.run.tracker is None and found.run.max_steps is None


@pytest.mark.parametrize(
    ("yaml", "key", "suggestion"),
    [
        ("optim: {lrr: 1.0}", "optim.lrr", "optim.lr"),
        ("optmi: {lr: 1.0}", "optmi.lr", "optim.lr"),
        ("run: {max_step: 5}", "run.max_step", "run.max_steps"),
        ("mod: train", "mod", "mode"),
        ("optmi:\nrun: {seed: 1}", "optmi", "optim"),
        ("optmi: {}\nrun: {seed: 1}", "optmi", "optim"),
        ("run-seed: 3", "run-seed", "run.seed"),
        ("run: {max-steps: 3}", "run.max-steps", "run.max_steps"),
    ],
)
def test_unknown_key_in_a_file(write, yaml, key, suggestion):
    message = complaint("--config", write(yaml))
    assert f"unknown option {key!r}; did you mean {suggestion!r}? known: " in message
    siblings = "." in key or "." not in suggestion
    assert (suggestion in message.split("known: ")[1].split(", ")) == siblings


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [
        ("--optim.lrr", "optim.lr"),
        ("--optmi.lr", "optim.lr"),
        ("--run.see", "run.seed"),  # no abbreviations: they would change their meaning with the next option
        ("--data.max_train_sample", "data.max_train_samples"),
        ("--lr", "optim.lr"),
        ("-lr", "optim.lr"),
        ("--data-path", "data.path"),
        ("--data_path", "data.path"),
        ("--data-max-train-samples", "data.max_train_samples"),
        ("--run.max-steps", "run.max_steps"),
        ("--run.max.steps", "run.max_steps"),
        ("--batch-size", "data.batch_size"),
    ],
)
def test_unknown_flag(flag, suggestion):
    message = complaint(flag, "3")
    assert f"unknown option {flag.lstrip('-')!r}; did you mean {suggestion!r}? known: " in message


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--optim.lr", "fast"], ["optim.lr", "float", "fast"]),
        (["--run.max_steps", "1.5"], ["run.max_steps", "int", "1.5"]),
        (["--run.resume", "maybe"], ["run.resume", "bool", "maybe"]),
        (["--run.resume"], ["run.resume", "expected one argument"]),
        (["--run.precision", "fp8"], ["run.precision", "'fp32', 'bf16', 'fp16'", "fp8"]),
        (["--mode", "trian"], ["mode", "'train', 'evaluate'", "trian"]),
        (["--optim.betas", "[0.9]"], ["optim.betas", "2 elements"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "not exist"]),
        (["--config"], ["--config", "expected one argument"]),
        (["train"], ["train"]),
    ],
)
def test_wrong_values_are_named(args, parts):
    message = complaint(*args)
    assert all(part in message for part in parts), message


REPEATED = "run:\n  seed: 1\noptim: {lr: 1}\nrun:\n  epochs: 2"
TWICE = {
    REPEATED: "run, in line 4, stands there twice",
    "optim.lr: 1.0\noptim: {lr: 2.0}": "optim.lr, in line 2, stands there twice",
}


@pytest.mark.parametrize("yaml", ["optim: {lr: fast}", "optim: [", "- 1", "optim: 3", "run: {seed: null}", *TWICE])
def test_wrong_files_are_named(write, yaml):
    # Which of several files is wrong, the message should say.
    message = complaint("--config", write("run: {seed: 1}"), "--config", write(yaml, "broken.yaml"))
    assert "broken.yaml" in message and TWICE.get(yaml, "") in message


EMPTY = ["", "# lr: 1\n", "---\n", "optim:\n  # lr: 1\n", "optim:\narch:\n", "{run: {}, data: }", "{}"]


@pytest.mark.parametrize("yaml", EMPTY)
def test_a_group_without_options_changes_nothing(write, yaml):
    assert parse(Config, ["--config", write(yaml)]) == Config()
    found = parse(Config, ["--config", write("optim:\n  # lr: 1\narch:\nrun: {seed: 7}")])
    assert found == Config(run=Run(out="runs/test", seed=7))


def test_options_with_dots_in_a_file_keep_what_is_false_or_0(write, tmp_path, monkeypatch):
    found = parse(Config, ["--config", write("optim.warmup: 0\nrun.resume: false\nrun.max_minutes: 0")])
    assert (found.optim.warmup, found.run.resume, found.run.max_minutes) == (0, False, 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("data: {name: 007}\noptim:\n")
    assert parse(Config, ["--config=~/mine.yaml"]).data.name == "007"


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("optim: 3", "optim is 3; should have options under it, one a line"),
        ("arch: [1]", "arch is [1]; should have options under it, one a line"),
        ("run: {seed: 1}\ndata: true", "data is True; should have options under it, one a line"),
        ("3", "should have an option a line with its value, such as mode: train; not '3'"),
        ("optmi:", "should have an option a line with its value, such as mode: train; not 'optmi:'"),
        ("run:\n  out:", "run.out is null; it needs a value, and has its default where it is not given"),
        ("optim: {betas: }", "optim.betas is null; it needs a value, and has its default where it is not given"),
        ("mode:\nrun: {seed: 1}", "mode is null; it needs a value, and has its default where it is not given"),
    ],
)
def test_what_is_no_group_of_options_is_named(write, yaml, said):
    assert complaint("--config", write(yaml)) == f"{write(yaml)}: {said}"


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert "a.yaml" in complaint("--config", str(tmp_path / "a.yaml"))
    assert "nowhere" in complaint("--config", str(tmp_path / "nowhere"))


def test_demo_defaults_only_without_a_path(tmp_path, write):
    demo = tmp_path / "configs/demo.yaml"
    demo.parent.mkdir()
    demo.write_text("optim: {lr: 0.5}\nrun: {epochs: 2, seed: 5}")
    file = write("run: {seed: 6}")
    with_path = write("data: {path: somewhere}", "path.yaml")
    found = parse(Config, ["--config", file, "--run.epochs", "3"], demo=demo)
    assert (found.optim.lr, found.run.epochs, found.run.seed) == (0.5, 3, 6)
    for args in (["--data.path", "somewhere"], ["--config", with_path]):
        found = parse(Config, args, demo=demo)
        assert (found.optim.lr, found.run.epochs, found.run.seed) == (1e-3, 10, 0)


@pytest.mark.parametrize("recipe, name", [("audio_classification", "superb_ks"), ("token_classification", "ud_ewt")])
def test_configurations_for_a_data_set_do_not_run_the_demo(recipe, name):
    """superb_ks alone would fine-tune the released model on twelve synthesised keywords."""
    demo, config_class = RECIPES / f"configs/{recipe}/demo.yaml", load_recipe(recipe).Config
    args = ["--config", str(demo.with_name(f"{name}.yaml"))]
    with pytest.raises(InputError, match=f"{name}.yaml: has no data.path, and is not the demo's; add --data.path"):
        parse(config_class, args, demo=demo)
    assert parse(config_class, [*args, "--data.path=x"], demo=demo).data.path == "x"
    assert parse(config_class, ["--config", str(demo)], demo=demo).data.path is None


def test_a_configuration_for_the_demo_s_data_says_so(monkeypatch):
    demo = RECIPES / "configs/pretrain_text/demo.yaml"
    args = ["--config", str(demo.with_name("small.yaml"))]
    assert parse(load_recipe("pretrain_text").Config, args, demo=demo).data.path is None
    monkeypatch.chdir(demo.parent)  # what is given in place of a file is none of these
    assert parse(load_recipe("pretrain_text").Config, ["--config", "{run: {epochs: 3}}"], demo=demo).run.epochs == 3


def test_a_file_may_say_half_of_what_the_command_says(write):
    """What options mean together counts once all are there; keys are not merged."""
    file = write("optim: {schedule: tri_stage}")
    assert parse(Recipe, ["--config", file, "--optim.final_scale", "0.05"]).optim.schedule == "tri_stage"
    with pytest.raises(InputError, match=r"config.yaml: optim.final_scale should be above 0"):
        parse(Recipe, ["--config", file])
    with pytest.raises(InputError, match="keys cannot be merged with <<"):
        parse(Recipe, ["--config", write("optim:\n  <<: {lr: 1.0e-3}\n")])


def test_yaml_round_trip(write, tmp_path):
    flags = ["--optim.lr=1e-7", "--optim.betas=[0.5, 0.75]", "--run.out=läufe/1", "--arch.a=[1, 2]", "--arch.b=x: y"]
    for found in (Config(), parse(Config, [*flags, "--run.max_minutes", "0.5", "--data.path", "a b/#c"])):
        assert parse(Config, ["--config", write(to_yaml(found))]) == found


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.wav: bad\n  in two lines"), 2, "error: a.wav: bad in two lines"),
        (Interrupted("saved at update 3"), 130, "interrupted: saved at update 3"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), 2, "error: x/y: No space left on device; "),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: runs/test: No space left on device; "),
    ],
)
def test_run_prints_one_line_and_exits(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(SystemExit) as exit:
        cli.run(Mock(side_effect=error), Config)
    printed = capsys.readouterr()
    assert exit.value.code == code
    assert printed.err.startswith(line) and printed.err.count("\n") == 1 and not printed.out


def bad_row(rows):
    raise InputError("clip-7: cut off")


def test_a_complaint_from_a_data_worker_is_one_line_too(monkeypatch, capsys):
    loader = DataLoader([1], num_workers=1, collate_fn=bad_row)  # torch adds the worker's traceback to the message
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(SystemExit):
        cli.run(lambda found: list(loader), Config)
    assert capsys.readouterr().err == "error: clip-7: cut off\n"


def test_run_returns_when_done_and_hides_no_bug(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--run.seed", "3"])
    cli.run(seen.append, Config)  # so the process exits with 0
    assert seen[0].run.seed == 3 and not capsys.readouterr().err
    for error in (ZeroDivisionError(), OSError(errno.EIO, "Input/output error")):
        with pytest.raises(type(error)):
            cli.run(Mock(side_effect=error), Config)


def test_run_refuses_a_wrong_command_line_before_anything_happens(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--optim.lrr", "3"])
    with pytest.raises(SystemExit) as exit:
        cli.run(main := Mock(), Config)
    assert (
        not main.called
        and exit.value.code == 2
        and capsys.readouterr().err.startswith("error: unknown option 'optim.lrr'")
    )


@pytest.mark.parametrize(
    "flag",
    ["run.epochs=0", "run.log_every=0", "run.keep_last=0", "optim.batches=0", "data.batch_size=0", "optim.lr=-1"],
)
def test_impossible_numbers_are_named(flag):
    name, value = flag.split("=")
    with pytest.raises(InputError, match=f"{name} should be at least [01], not {value}"):
        parse(load_recipe("asr_ctc").Config, [f"--{flag}"])


BLANK = {
    "asr_ctc": ["run.out", "run.push", "run.metric", "model", "data.test_split", "data.submission", "lm.path"],
    "speaker_verification": ["data.trials"],
    "audio_frame_classification": ["data.rttm"],
    "image_classification": ["data.real"],
    "pretrain_audio": ["run.out", "model", "probe.column"],
}


@pytest.mark.parametrize(("recipe", "name"), [(recipe, name) for recipe, names in BLANK.items() for name in names])
def test_blank_options_are_named(recipe, name):
    """As a variable that is not set gives: a path would be the working directory, a model random weights."""
    for blank in ("", "  "):
        with pytest.raises(InputError, match=f"^{name} is empty, such as a variable that is not set; "):
            parse(load_recipe(recipe).Config, ["--data.path=x", f"--{name}={blank}"])


def test_white_space_that_is_a_value():
    found = parse(
        load_recipe("text_classification").Config, ["--data.path=x", "--data.label_separator= ", "--model=none"]
    )
    assert found.data.label_separator == " " and found.model is None
    with pytest.raises(InputError, match="^data.label_separator is empty; it should be what stands between labels"):
        parse(load_recipe("text_classification").Config, ["--data.path=x", "--data.label_separator="])
    for given, meant in (("", ""), ("\\n", "\n"), ("\\n\\t", "\n\t"), (" \\newpage ", " \\newpage ")):
        args = ["--data.path=x", f"--data.separator={given}"]
        assert parse(load_recipe("causal_lm").Config, args).data.separator == meant


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (push, ["", "me/model"]),
        (sweep, ["text_classification", "--out", ""]),
        (convert, ["a.pt", " "]),
        (convert, ["a.pt", "b", "--dict="]),
        (compare, ["a", ""]),
    ],
)
def test_blank_paths_of_commands_are_refused(command, args, capsys):
    with pytest.raises(SystemExit) as exit:
        command.main(args)
    assert exit.value.code == 2 and "is empty, such as a variable that is not set" in capsys.readouterr().err


# Text stays text, in lists and files too.
AS_WRITTEN = {
    "--data.held_out_speakers=[007]": ["007"],
    "--data.held_out_speakers=[no]": ["no"],
    "--data.held_out_speakers=[Yes, 1e3, null, 2020-01-01, ~, 0x10, a]": [
        "Yes",
        "1e3",
        "null",
        "2020-01-01",
        "~",
        "0x10",
        "a",
    ],
    "--data.held_out_speakers=['007', \"no\", 'a, b']": ["007", "no", "a, b"],
    "--data.held_out_speakers+=007": ["007"],
    "--data.held_out_speakers=[]": [],
    "--data.name=007": "007",
    "--data.name=no": "no",
    "--data.name=null": None,
    "--data.name=#1": "#1",
    "--data.header=[1, no]": ["1", "no"],
    "--run.seed=7": 7,
}


@pytest.mark.parametrize("option", AS_WRITTEN)
def test_text_is_as_written(option):
    config = parse(load_recipe("speaker_verification").Config, ["--data.path=x", option])
    group, name = re.match(r"--(\w+)\.(\w+)", option).groups()
    assert getattr(getattr(config, group), name) == AS_WRITTEN[option]


def test_text_in_files_is_as_written(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "data:\n  held_out_speakers: [007, no]\n  path: 0010\n  name: 1.0\nrun: {seed: 7}\n"
    )
    config = parse(load_recipe("speaker_verification").Config, ["--config", str(tmp_path / "a.yaml")])
    assert (config.data.held_out_speakers, config.data.path, config.data.name) == (["007", "no"], "0010", "1.0")
    assert config.run.seed == 7
    also = parse(load_recipe("text_classification").Config, ["--data.path=x", "--data.also={no: 007}"]).data.also
    assert also == {"no": "007"}
    (tmp_path / "b.yaml").write_text("data: {class_weights: {no: 2, 7: 1e-1}}")
    for option in ("--data.class_weights={no: 2, 7: 1e-1}", f"--config={tmp_path / 'b.yaml'}"):
        weights = parse(load_recipe("text_classification").Config, ["--data.path=x", option]).data.class_weights
        assert weights == {"no": 2.0, "7": 0.1}
    weights = {"run": 2.0, "model": 1.0}  # classes that are called as options
    option = "--data.class_weights={run: 2, model: 1}"
    assert parse(load_recipe("text_classification").Config, ["--data.path=x", option]).data.class_weights == weights
    for option in ("--data.tiers=[*]", "--data.tiers=['*']"):
        assert parse(load_recipe("asr_ctc").Config, ["--data.path=x", option]).data.tiers == ["*"]


def test_prepared_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    for line in ("prepared: 8 rows", ""):  # the other processes say nothing
        cli.run(Mock(side_effect=Prepared(line)), Config)
        assert capsys.readouterr().out == (line and line + "\n")
