"""The README says what is so: its commands parse, its paths exist, its Python runs, its table is `results.csv`.

`python -m tests.test_readme` writes the table anew.
"""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from d2v.convert import command_line
from tests.helpers import RECIPES, ROOT, parse_command, tiny_recogniser

README = ROOT / "README.md"
TEXT = README.read_text("utf-8")
RESULTS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def blocks(language: str) -> list[str]:
    """The content of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every single command of the shell blocks."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line and not line.startswith("#")]
    return [command for line in lines for command in line.split(" && ")]


def results_table() -> str:
    """`recipes/results.csv` in Markdown, with links; figures as they stand there."""
    with (ROOT / "recipes/results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    for row in rows:
        recipe, config = row["recipe"], row["config"]
        row["recipe"] = f"[{recipe}](recipes/{recipe}.py)"
        row["config"] = f"[{config}](recipes/configs/{recipe}/{config}.yaml)"
        lines.append(f"| {' | '.join(row.values())} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("command", commands())
def test_command(command):
    words = shlex.split(command)
    if words[:3] == ["pip", "install", "-e"]:
        extras = re.fullmatch(r"\.\[([\w,]+)\]", words[3])[1].split(",")
        defined = (ROOT / "pyproject.toml").read_text("utf-8")
        assert len(words) == 4 and all(f"\n{extra} = [" in defined for extra in extras)
    elif words[:3] == ["python", "-m", "d2v.convert"]:
        assert command_line().parse_args(words[3:]).out
    elif words[-1] == "--help":
        assert words in [["python", f"recipes/{recipe}.py", "--help"] for recipe in RECIPES]
    else:
        assert words == ["pytest"] or parse_command(command)


def test_the_first_command_installs_and_runs_the_demo():
    install, demo = commands()[:2]
    assert install == 'pip install -e ".[demo]"'
    name, config = parse_command(demo)
    assert (name, config.mode, config.data.path) == ("asr_ctc", "train", None)


def test_ci_runs_the_readmes_tests():
    """`.ci/run` takes the first line that installs and tests, so there has to be one."""
    assert [line for block in blocks("bash") for line in block.splitlines() if line.endswith("&& pytest")]


def test_paths_exist():
    named = re.findall(r"`((?:d2v|recipes|tests|benchmarks|\.ci|\.github)/[\w./-]+)`", TEXT)
    linked = [path for path in re.findall(r"\]\(([^)]+)\)", TEXT) if not path.startswith("http")]
    options = [word for command in commands() for word in shlex.split(command) if word.startswith("recipes/")]
    assert named and linked and options
    assert [path for path in named + linked + options if not (ROOT / path).exists()] == []


def test_tree():
    """It lists nothing that is not there, and everything at the top of d2v and of recipes."""
    (tree,) = [block for block in blocks("text") if "\nd2v/ " in block]
    listed, folders = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        listed.add("".join(folders).rstrip("/"))
    assert [path for path in sorted(listed) if not (ROOT / path).exists()] == []
    there = [path for path in [*ROOT.glob("d2v/*"), *ROOT.glob("recipes/*.*")] if not path.name.startswith("__")]
    covered = {str(path) for entry in listed for path in (Path(entry), *Path(entry).parents)}
    assert [path for path in there if str(path.relative_to(ROOT)) not in covered] == []


def test_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_recogniser(tmp_path / "runs/asr_ctc/best")
    (tmp_path / "recordings").mkdir()
    for name, samples in (("a", 16_000), ("b", 9_000)):
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, samples)
        soundfile.write(tmp_path / f"recordings/{name}.wav", noise, 16_000)
    recognise, adapt = blocks("python")
    exec(recognise, {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    exec(adapt, {})
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in Path("adapter").iterdir()}


def test_results_table():
    assert RESULTS.search(TEXT)[0] == results_table(), "python -m tests.test_readme writes it anew"


if __name__ == "__main__":
    README.write_text(RESULTS.sub(lambda _: results_table(), TEXT), "utf-8")
