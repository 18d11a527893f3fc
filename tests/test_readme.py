"""The documentation says what is so: commands parse, paths exist, Python runs, tables are `results.csv`.

`python -m tests.test_readme` writes the tables anew.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from benchmarks.recipe import load_recipe
from d2v import compare, push, sweep
from d2v.cli import parse
from d2v.convert import command_line
from tests.helpers import PRETRAINING, RECIPES, ROOT, SCRIPTS, parse_command, tiny_recogniser

PAGES = {path: (ROOT / path).read_text("utf-8") for path in ("README.md", "CONTRIBUTING.md", "recipes/README.md")}
PAGES["benchmarks/README.md"] = (ROOT / "benchmarks/README.md").read_text("utf-8")
TABLES = {"README.md": "measured", "recipes/README.md": "results"}
"""Page -> name of the comments around its table."""
NOT_RATES = ("perplexity", "loss_per_character")
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    """The content of a page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Every single command of a page's shell blocks."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [command for line in lines if line and not line.startswith("#") for command in line.split(" && ")]


def table(name: str) -> re.Pattern:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def results() -> list[dict[str, str]]:
    with (ROOT / "recipes/results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_of_table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def links(row: dict[str, str], folder: str) -> dict[str, str]:
    """A result's recipe and configuration as links from a page."""
    recipe, config = row["recipe"], row["config"]
    target = f"{folder}configs/{recipe}/{config}.yaml"
    return {"recipe": f"[{recipe}]({folder}{recipe}.py)", "config": f"[{config}]({target})"}


def measured_table() -> str:
    """What was measured: one row each, and in words what of, from the first line of the configuration."""
    rows = []
    for row in (row for row in results() if row["ours"]):
        config = ROOT / f"recipes/configs/{row['recipe']}/{row['config']}.yaml"
        header = config.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        result = f"{row['metric']} {row['ours']}{'' if row['metric'] in NOT_RATES else ' %'}"
        result += f" ({row['interval']})" if row["interval"] else ""
        result += f"; from random weights {row['scratch']}" if row["scratch"] else ""
        result += f"; by chance {row['chance']}" if row["chance"] else ""
        begun = "small model" if yaml.safe_load(config.read_text("utf-8")).get("model") else "random weights"
        values = {"data": re.split("[;:,(?.]", header)[0].strip(), "starts from": begun, "result": result}
        values |= {"hardware": row["hardware"], "minutes": str(round(60 * float(row["hours"])))}
        rows.append(links(row, "recipes/") | values)
    return rows_of_table(rows)


def results_table() -> str:
    """All of `recipes/results.csv`; figures as they stand there."""
    return rows_of_table([row | links(row, "") for row in results()])


MAKERS = {"README.md": measured_table, "recipes/README.md": results_table}


@cache
def leaderboards_parser():
    import jsonargparse

    from d2v import leaderboards

    return jsonargparse.capture_parser(leaderboards.main)


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in commands(page)])
def test_command(page, command):
    words = shlex.split(command)
    module, args = (words[2], words[3:]) if words[:2] == ["python", "-m"] else (None, words[1:])
    if words[:3] == ["pip", "install", "-e"]:
        assert len(words) == 4 and re.fullmatch(r"\.\[[\w,]+\]", words[3])  # `test_extras_exist`
    elif module == "d2v.convert":
        assert command_line().parse_args(args).out
    elif module == "d2v.compare":
        assert len(compare.command_line().parse_args(args).runs) >= 2
    elif module == "d2v.sweep":
        own, others = args[: args.index("--")], args[args.index("--") + 1 :]
        parsed = sweep.command_line().parse_args(own)
        assert sweep.combinations(parsed.grid) and parse(load_recipe(parsed.recipe).Config, others)
    elif module == "d2v.leaderboards":
        assert leaderboards_parser().parse_args(args).subcommand == args[0]
    elif module == "d2v.push":
        assert push.command_line().parse_args(args).repo
    elif module and module.startswith("benchmarks."):
        assert parse_benchmark(module, args)
    elif words[-1] == "--help":
        assert words in [["python", f"recipes/{recipe}.py", "--help"] for recipe in SCRIPTS]
    elif words[0] == "ruff":
        assert args in (["check", "."], ["format", "--check", "."])
    elif words[0] == "mypy":
        assert args == [] and "[tool.mypy]" in (ROOT / "pyproject.toml").read_text("utf-8")
    elif words[0] == "pytest":
        assert args in (["-n", "2"], ["-m", "slow"]) and "pytest-xdist" in (ROOT / "pyproject.toml").read_text("utf-8")
    else:
        assert words == ["python", "-m", "tests.test_readme"] or parse_command(command)


def parse_benchmark(module: str, args: list[str]) -> bool:
    """Whether a benchmark takes these arguments; those of a recipe are parsed as the recipe's."""
    from benchmarks import (
        agreement,
        claim,
        flat,
        intervals,
        keras_training,
        kills,
        published,
        recipes_speed,
        record,
        scale,
        small,
        speed,
        streams,
    )

    there = ["agreement", "claim", "flat", "intervals", "keras_training", "kills", "learning", "published"]
    there += ["recipes_speed", "record", "scale", "small", "speed", "streams"]
    assert module in [f"benchmarks.{each}" for each in there]
    if module in ("benchmarks.claim", "benchmarks.small"):
        return (claim if module == "benchmarks.claim" else small).command_line().parse_args(args).modality == args[0]
    if module == "benchmarks.kills":
        return kills.command_line().parse_args(args).runs > 0
    if module == "benchmarks.keras_training":
        known = keras_training.command_line().parse_args(args)
        return (known.what == "pytorch") == bool(known.data)
    if module == "benchmarks.flat":
        return flat.command_line().parse_args(args).rounds > 0
    if module == "benchmarks.streams":
        return streams.command_line().parse_args(args).updates > 0
    if module == "benchmarks.intervals":
        return intervals.command_line().parse_args(args).rows > 0
    if module == "benchmarks.scale":
        return min(scale.command_line().parse_args(args).rows) > 0
    if module == "benchmarks.published":
        only = tuple(published.command_line().parse_args(args).only)
        return any(row.name.startswith(only) for row in published.ROWS)
    if module == "benchmarks.speed":
        return bool(speed.parse(args).tasks)
    if module == "benchmarks.record":
        return record.command_line().parse_args(args).command == args[0]
    recipe, *options = args
    if module in ("benchmarks.agreement", "benchmarks.recipes_speed"):
        commands = {"benchmarks.agreement": agreement, "benchmarks.recipes_speed": recipes_speed}
        known, options = commands[module].command_line().parse_known_args(args)
        recipe = known.recipe
    else:
        assert recipe == "asr_ctc"
    options = [str(ROOT / word) if word.startswith("recipes/") else word for word in options]
    return parse(load_recipe(recipe).Config, options).data.path is not None


def test_the_first_command_installs_and_runs_the_demo():
    install, demo = commands("README.md")[:2]
    assert install == 'pip install -e ".[demo]"'
    name, config = parse_command(demo)
    assert (name, config.mode, config.data.path) == ("asr_ctc", "train", None)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_ci_runs_the_readmes_tests():
    """`.ci/run` takes the first line that installs and tests, so there has to be one."""
    lines = "".join(blocks("README.md", "bash")).splitlines()
    assert [line for line in lines if line.endswith("&& pytest -n 2")]


@EVERY_PAGE
def test_paths_exist(page):
    """Those in code, links, commands and diffs; a link to a heading leads to one."""
    text, folder = PAGES[page], (ROOT / page).parent
    named = re.findall(r"`((?:d2v|recipes|tests|benchmarks|notebooks|\.ci|\.github)/[\w./-]+)`", text)
    named += [word for command in commands(page) for word in shlex.split(command) if word.startswith("recipes/")]
    assert [path for path in named if not (ROOT / path).exists()] == []
    linked = [path for path in re.findall(r"\]\(([^)]+)\)", text) if not path.startswith("http")]
    files = [path.partition("#")[0] for path in linked]
    assert [path for path in files if path and not (folder / path).exists()] == []
    headings = ["#" + re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings_of(text)]
    assert [path for path in linked if path.startswith("#") and path not in headings] == []


def headings_of(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def test_modules_that_are_named_exist():
    names = {name for text in PAGES.values() for name in re.findall(r"`(d2v(?:\.\w+)+)", text)}
    assert names
    for name in names:
        parts = name.split(".")
        found = [ROOT.joinpath(*parts[:end]) for end in range(len(parts), 1, -1)]
        assert any(path.is_dir() or path.with_suffix(".py").is_file() for path in found), name


def test_extras_exist():
    defined = (ROOT / "pyproject.toml").read_text("utf-8")
    named = {
        extra for text in PAGES.values() for part in re.findall(r"\.\[([\w,]+)\]", text) for extra in part.split(",")
    }
    assert "demo" in named and [extra for extra in named if f"\n{extra} = [" not in defined] == []


def test_tree():
    """It lists nothing that is not there, and everything at the top of d2v and of recipes."""
    (tree,) = [block for block in blocks("CONTRIBUTING.md", "text") if "\nd2v/ " in block]
    listed, folders = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        listed.add("".join(folders).rstrip("/"))
    assert [path for path in sorted(listed) if not (ROOT / path).exists()] == []
    there = [path for path in [*ROOT.glob("d2v/*"), *ROOT.glob("recipes/*")] if not path.name.startswith("__")]
    covered = {str(path) for entry in listed for path in (Path(entry), *Path(entry).parents)}
    assert [path for path in there if str(path.relative_to(ROOT)) not in covered] == []


def test_the_ladder_is_the_one_that_is_tested():
    from tests.test_architecture import LADDER

    (ladder,) = [block for block in blocks("CONTRIBUTING.md", "text") if " < " in block]
    rungs = [rung.strip().split(", ") for rung in ladder.split("<")]
    assert rungs.pop() == ["commands", "recipes"]
    assert [set(rung) for rung in rungs] == [{name.removeprefix("d2v.") for name in rung} for rung in LADDER[:-1]]


def test_changes_that_are_walked_through_stand_in_the_code():
    """Each line of a diff in its file, in this order, and at most four files a change."""
    changes = blocks("CONTRIBUTING.md", "diff")
    assert len(changes) == 3
    for change in changes:
        files = re.findall(r"^\+\+\+ (\S+)\n((?:\+(?!\+\+).*\n)+)", change, re.MULTILINE)
        assert 2 <= len(files) <= 4 and sum(1 + part.count("\n") for _, part in files) == len(change.splitlines())
        for path, added in files:
            lines = iter((ROOT / path).read_text("utf-8").splitlines())
            assert [line for line in added.splitlines() if line[1:] not in lines] == [], path


def section(title: str) -> str:
    """A section of recipes/README.md."""
    return re.search(rf"^## {title}\n(.*?)(?=^## )", PAGES["recipes/README.md"], re.DOTALL | re.MULTILINE)[1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_data_formats(recipe):
    """Examples in JSON parse, and the first of them has the columns that the recipe looks for by default."""
    data, text = load_recipe(recipe).Config().data, section(recipe)
    examples = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    rows = [json.loads(line) for example in examples for line in example.splitlines()]
    values = [getattr(data, field.name) for field in fields(data) if re.search("_columns?$", field.name)]
    columns = {name for value in values if value for name in (value if isinstance(value, list) else [value])} - {"auto"}
    assert columns and (rows or "```text" in text)
    assert not rows or columns - rows[0].keys() == set()


@pytest.mark.parametrize("recipe", [*RECIPES, "Pretraining", "What is common"])
def test_options_exist(recipe):
    """Those that a recipe's section names; those of the last section in some recipe, or in the launcher."""
    sections = {"Pretraining": PRETRAINING, "What is common": RECIPES}
    configs = [load_recipe(name).Config() for name in sections.get(recipe, [recipe])]
    text = re.sub(r"^```sbatch.*?^```$", "", section(recipe), flags=re.DOTALL | re.MULTILINE)
    launchers = {"multi_gpu", "num_processes", "quiet", "private", "config_file"} if recipe not in RECIPES else set()
    launchers |= {"nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port"} if launchers else set()
    known = {"config", "help"} | launchers

    def exists(group: str, name: str) -> bool:
        return any(hasattr(each, group) and (not name or hasattr(getattr(each, group), name)) for each in configs)

    groups = "data|optim|run|lora|augment|sampling|lm"
    named = [*re.findall(r"--(\w+)(?:\.(\w+))?", text), *re.findall(rf"`({groups})\.(?!json)(\w+)`", text)]
    named = [(group, name) for group, name in named if group not in known and group != "arch"]
    assert named and [pair for pair in named if not exists(*pair)] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash runs it")
@pytest.mark.parametrize(
    ("code", "ends", "asked", "status"), [(0, True, "", 0), (130, False, "requeue 7", 0), (1, False, "", 1)]
)
def test_a_job_of_slurm_is_requeued_where_the_run_was_saved(tmp_path, code, ends, asked, status):
    """By the example, with stand-ins for Slurm's commands and for the run, which has the cores of its task."""
    (script,) = blocks("recipes/README.md", "sbatch")
    results = tmp_path / "runs/asr_ctc/results.json"
    wrote = f"mkdir -p {results.parent}; touch {results}" if ends else ""
    commands = {
        "srun": f'[ "$1" = --cpus-per-task=8 ] || exit 9\nshift 2\nexec "$@" > {tmp_path}/said',
        "python": f"echo $RANK $LOCAL_RANK $3\n{wrote}\nexit {code}",
        "scontrol": f'[ $1 = show ] && echo node1 || echo -n "$*" > {tmp_path}/asked',
    }
    for name, lines in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": 7, "CPUS_PER_TASK": 8, "NTASKS": 16, "PROCID": 3, "LOCALID": 1, "JOB_NODELIST": "node[1-2]"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | {f"SLURM_{key}": str(x) for key, x in slurm.items()}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment)
    assert (done.returncode, (tmp_path / "said").read_text()) == (status, "3 1 DIR\n")
    assert ((tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else "") == asked


def test_configurations_are_listed():
    """All but demos and small sets, which have rows with results."""
    measured = {(row["recipe"], row["config"]) for row in results() if row["ours"]}
    others = {(path.parent.name, path.stem) for path in ROOT.glob("recipes/configs/*/*.yaml")} - measured
    sections = PAGES["recipes/README.md"].partition("\n## Results\n")[0]
    assert others - set(re.findall(r"\]\(configs/(\w+)/(\w+)\.yaml\)", sections)) == set()


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A folder with what the pages' Python opens: a tiny recogniser and two recordings."""
    monkeypatch.chdir(tmp_path)
    tiny_recogniser(tmp_path / "runs/asr_ctc/best")
    (tmp_path / "recordings").mkdir()
    for name, samples in (("a", 16_000), ("b", 9_000)):
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, samples)
        soundfile.write(tmp_path / f"recordings/{name}.wav", noise, 16_000)


def test_python_of_the_readme(checkpoint, capsys):
    (recognise,) = blocks("README.md", "python")
    exec(recognise, {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_python_of_the_recipes(checkpoint, capsys):
    adapt, measure = blocks("recipes/README.md", "python")
    exec(adapt, {})
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in Path("adapter").iterdir()}
    capsys.readouterr()
    exec(measure, {})
    first, second = capsys.readouterr().out.splitlines()
    assert eval(first) == {"wer": pytest.approx(0.2), "cer": pytest.approx(2 / 23)}
    assert eval(second) == {"matthews_correlation": pytest.approx(0.57735), "f1": pytest.approx(2 / 3)}


def test_other_pages_have_no_python():
    assert [page for page in PAGES if blocks(page, "python")] == ["README.md", "recipes/README.md"]


def test_modules_of_metrics_are_listed():
    from d2v.metrics import modules

    made = [name for name, value in vars(modules).items() if getattr(value, "__module__", "") == modules.__name__]
    made = {name for name in made if name.islower() and not name.startswith(("new_", "as_", "are_"))}
    listed = PAGES["recipes/README.md"].partition("They are `")[2].partition("\n#")[0]
    assert set(re.findall(r"`?(\w+)`", listed)) == made


def test_what_the_demo_prints_is_what_a_run_prints():
    """Figures are those of `results.csv`, lines those of the report, files in its order."""
    from d2v.training.report import FILES

    (shown,) = [block for block in blocks("README.md", "text") if "results.json" in block]
    (wer,) = [row["ours"] for row in results() if (row["recipe"], row["config"]) == ("asr_ctc", "demo")]
    assert f"{float(re.search(r'^wer +([^ ]+)', shown, re.MULTILINE)[1]):.2%}" == f"{wer}%"
    files = re.findall(r"^runs/asr_ctc/(\S+) +(.+)$", shown, re.MULTILINE)
    assert files == [(name, what) for name, what in FILES.items() if name in dict(files)]
    assert len({line.index(what) for line in shown.splitlines() for _, what in files if line.endswith(what)}) == 1


def test_what_is_measured_from_now_on_has_an_interval_and_its_seeds():
    """In the figure's unit: the 95 % interval over the rows of test, of one seed's run or of the mean over seeds.

    Where all is right, rows drawn again say nothing.
    """
    for row in results():
        if row["ours"] == "100.00" and row["seeds"]:
            assert not row["interval"], row
        elif row["ours"] and row["date"] >= "2026-11-29":
            low, high = map(float, row["interval"].split(" to "))
            assert low <= float(row["ours"]) <= high and int(row["seeds"]) >= 1, row
        else:
            assert row["ours"] or not (row["interval"] or row["seeds"]), row


@pytest.mark.parametrize("page", TABLES)
def test_table(page):
    assert table(TABLES[page]).search(PAGES[page])[0] == MAKERS[page](), "python -m tests.test_readme writes it anew"


def write_tables() -> None:
    for page, name in TABLES.items():
        (ROOT / page).write_text(table(name).sub(lambda _, page=page: MAKERS[page](), PAGES[page]), "utf-8")


if __name__ == "__main__":
    write_tables()
