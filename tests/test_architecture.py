"""The rules that keep the repository one: imports point one way, one task has one name, files stay short."""

import ast
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recipe import load_recipe
from tests.helpers import PRETRAINING, RECIPES, ROOT, SCRIPTS, parse_command

LIBRARY = sorted(ROOT.glob("d2v/**/*.py"))


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside its functions; `d2v.x` for `from d2v import x`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"d2v.{alias.name}" for alias in node.names} if node.module == "d2v" else {node.module}
    return found


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


# From the bottom to the top: a module imports what stands on a lower rung, or beside it in its own room.
LADDER = [
    ("d2v.devices", "d2v.errors"),
    ("d2v.config", "d2v.hub", "d2v.losses"),
    ("d2v.pretrained",),
    ("d2v.models",),
    ("d2v.lora", "d2v.auto", "d2v.processors"),
    ("d2v.data",),
    ("d2v.decode",),
    ("d2v.metrics",),
    ("d2v.training",),
    ("d2v.cli",),
    ("d2v.compare", "d2v.convert", "d2v.leaderboards", "d2v.push", "d2v.sweep"),  # commands
]
BESIDE = {"d2v.demo": 5, "d2v.keras": 3}
"""What nothing of the library imports may import as much as the rooms on this rung."""


def rung(module: str) -> int:
    """The number of a module's rung; the package itself, which imports the models, counts as one of them."""
    if module == "d2v":
        return 3
    for room, number in BESIDE.items():
        if within(module, room):
            return number
    (number,) = [i for i, rooms in enumerate(LADDER) if within(module, *rooms)]
    return number


def test_the_import_ladder():
    """Imports under `TYPE_CHECKING` and in functions included: no rung imports a higher one, and there is no cycle."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in LIBRARY}
    names = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {}
    for name, path in names.items():
        found = {module for module in imports(path) if module and within(module, "d2v")}
        # `from d2v.demo import text` names a module, `from d2v.config import Data` what is in one.
        graph[name] = {module if module in names else module.rpartition(".")[0] for module in found} - {name}
    climbs = [(name, other) for name, others in graph.items() for other in others if rung(other) > rung(name)]
    assert climbs == []
    for room in BESIDE:
        own = {name for name in graph if within(name, room)}
        assert not [name for name in graph.keys() - own if graph[name] & own]

    done, path = set(), []

    def visit(name):
        assert name not in path, f"a cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            path.append(name)
            # A package's `__init__` only names what its modules have.
            for other in sorted(graph[name]) if name not in ("d2v", "d2v.training") else ():
                visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


def test_keras_needs_no_pytorch():
    """Nor does what it imports of d2v."""
    light = {"d2v.errors", "d2v.hub", "d2v.models.configuration", "d2v.models.tables"}
    files = [path for path in LIBRARY if path.parent.name == "keras"]
    for path in [*files, *(ROOT / f"{module.replace('.', '/')}.py" for module in light)]:
        found = imports(path)
        heavy = ("torch", "torchvision", "accelerate", "datasets")
        assert not {module for module in found if within(module, *heavy)}, path
        own = {module for module in found if within(module, "d2v") and not within(module, "d2v.keras")}
        assert own <= light, path


def test_the_library_knows_neither_recipes_nor_tests():
    light = ("torch", "numpy", "scipy", "d2v")
    for path in LIBRARY:
        found = {module for module in imports(path) if module.partition(".")[0] not in sys.stdlib_module_names}
        assert not {module for module in found if within(module, "recipes", "tests", "benchmarks")}, path
        if path.parent.name == "models":
            assert not {module for module in found if not within(module, *light)}, path


def test_copies_that_overlap_are_made_in_one_place():
    """Whether they may depends on the device, which `d2v.devices` knows."""
    files = [*LIBRARY, *(ROOT / "recipes").glob("*.py")]
    found = [path for path in files if "non_blocking" in path.read_text("utf-8")]
    assert {path.name for path in found} == {"devices.py", "engine.py"}


def test_no_recipe_imports_another():
    for recipe in SCRIPTS:
        found = imports(ROOT / f"recipes/{recipe}.py")
        assert not {module for module in found if within(module, "recipes", "tests", "benchmarks", *SCRIPTS)}


def test_transformers_is_not_named():
    files = [path for folder in ("d2v", "recipes") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text("utf-8") for path in files if path.suffix not in (".pyc", ".png", ".safetensors")}
    assert len(texts) > len(LIBRARY)
    assert [path for path, text in texts.items() if re.search(r"\btransformers\b", text, re.IGNORECASE)] == []


def test_the_library_is_light():
    heavy = {"transformers", "datasets", "peft", "evaluate", "accelerate"}
    code = f"import d2v, sys; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert output == "[]\n"


@pytest.mark.parametrize("name", RECIPES)
def test_one_name(name):
    """A recipe, its configurations, its test, its row in the README and its model go by one name."""
    recipe = load_recipe(name)
    heads = re.findall(r"`(Data2Vec\w+)`", recipe.__doc__)
    assert len(heads) == 1 and inspect.getmodule(getattr(recipe, heads[0])).__name__.startswith("d2v.models.")
    assert (ROOT / f"recipes/configs/{name}/demo.yaml").is_file()
    assert (ROOT / f"tests/recipes/test_{name}.py").is_file()
    assert f"| [{name}](recipes/{name}.py) |" in (ROOT / "README.md").read_text("utf-8")


def test_configurations_belong_to_recipes():
    assert sorted(folder.name for folder in (ROOT / "recipes/configs").iterdir()) == ["accelerate", *SCRIPTS]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_look_alike(name):
    recipe = load_recipe(name)
    assert {"mode", "model", "data", "optim", "run"} <= {field.name for field in dataclasses.fields(recipe.Config)}
    assert recipe.Config().run.out == f"runs/{name}"
    assert list(inspect.signature(recipe.main).parameters) == ["config"]
    commands = re.findall(r"^    (accelerate launch .+)$", recipe.__doc__, re.MULTILINE)
    assert f"accelerate launch recipes/{name}.py" in commands
    assert [parse_command(command)[0] for command in commands] == [name] * len(commands)


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_looks_alike(name):
    """Three scripts that differ in what they read, what is masked, and nothing else."""
    recipe, lines = load_recipe(name), recipe_lines(name)
    assert recipe.Config().run.out == f"runs/{name}" and recipe.Config().mode == "train"
    assert list(inspect.signature(recipe.main).parameters) == ["config"]
    (model,) = re.findall(r"`(Data2Vec\w+Model)`", recipe.__doc__)
    assert inspect.getmodule(getattr(recipe, model)).__name__.startswith("d2v.models.")
    commands = re.findall(r"^    (accelerate launch .+)$", recipe.__doc__, re.MULTILINE)
    assert f"accelerate launch recipes/{name}.py" in commands
    assert [parse_command(command)[0] for command in commands] == [name] * len(commands)
    assert {"demo.yaml", "base.yaml"} <= {path.name for path in (ROOT / f"recipes/configs/{name}").iterdir()}
    assert len(lines) <= 100 and main_lines(name) <= 50
    parts = ["# Data and processors: ", "# Model: ", "# Loss: ", "def auxiliary_loss(", "pretrain(job, "]
    places = ["\n".join(lines).find(part) for part in [*parts, "finish_pretraining(job, "]]
    assert -1 not in places and places == sorted(places)


LONG = {
    "asr_ctc": "transcribes in windows and with a language model too",
    "audio_frame_classification": "two tasks, diarization and sound events, of which one chooses how to decide",
    "speaker_verification": "scores trials of clips, against a cohort too",
}
"""Recipes that may have up to 180 lines, and why; three at the most."""


def recipe_lines(name: str) -> list[str]:
    return (ROOT / f"recipes/{name}.py").read_text("utf-8").splitlines()


def main_lines(name: str) -> int:
    (main,) = [node for node in ast.parse("\n".join(recipe_lines(name))).body if getattr(node, "name", "") == "main"]
    return main.end_lineno - main.lineno + 1


def test_budgets():
    """Line count is a sign, not the aim: a recipe is read in one sitting, and so is a file of the library."""
    lines = {name: len(recipe_lines(name)) for name in RECIPES}
    assert len(LONG) <= 3
    assert {name: n for name, n in lines.items() if n > (180 if name in LONG else 150)} == {}
    assert sum(lines.values()) / len(lines) <= 140
    mains = {name: main_lines(name) for name in RECIPES}
    assert {name: n for name, n in mains.items() if n > 90} == {} and sum(mains.values()) / len(mains) <= 75
    library = {path: len(path.read_text("utf-8").splitlines()) for path in LIBRARY}
    assert {path: n for path, n in library.items() if n > 450} == {}


def test_recipes_repeat_little():
    """At most a fifth of a recipe's lines, imports aside, stand verbatim in six or more others."""
    own = {}
    for name in RECIPES:
        stripped = (line.strip() for line in recipe_lines(name))
        own[name] = [line for line in stripped if line and not line.startswith(("import ", "from "))]
    everywhere = {
        line for lines in own.values() for line in lines if sum(line in others for others in own.values()) >= 7
    }
    repeated = sum(line in everywhere for lines in own.values() for line in lines)
    assert repeated / sum(map(len, own.values())) <= 0.2


@pytest.mark.parametrize("name", RECIPES)
def test_the_parts_of_a_recipe_stand_in_order(name):
    text = "\n".join(recipe_lines(name))
    parts = ["# Data and processors: ", "# Model: ", "# Loss: ", "def loss_fn(", "# Prediction: ", "def predict_fn("]
    parts += ["# Metrics: ", "def compute_metrics(", "fit(job, ", "# Test: ", "finish(job, "]
    places = [text.find(part, text.index("def main(")) for part in parts]
    assert -1 not in places and places == sorted(places), dict(zip(parts, places, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_collate_functions_are_functions_of_a_module(name):
    """So they pickle, and workers need not be forked."""
    recipe = load_recipe(name)
    found = [value for key, value in vars(recipe).items() if key.startswith("collate") and inspect.isfunction(value)]
    assert found and all(pickle.loads(pickle.dumps(function)) is function for function in found)


def test_one_version():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "d2v/__init__.py").read_text("utf-8"))[1]
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text("utf-8")
