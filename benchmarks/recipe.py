"""Recipes are scripts, not a package: benchmarks and tests load them from their files."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parents[1] / "recipes"


def load_recipe(name: str) -> ModuleType:
    """The module of `recipes/<name>.py`, which data workers that are spawned find by its name."""
    if str(RECIPES) not in sys.path:
        sys.path.append(str(RECIPES))
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
