"""What an installed package has: all rooms, and the mark that says its types can be checked."""

import zipfile

import pytest

from tests.helpers import ROOT


def test_every_room_is_a_package():
    folders = {path.parent for path in ROOT.glob("d2v/**/*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    assert (ROOT / "d2v/py.typed").is_file()


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path, monkeypatch):
    import shutil

    from setuptools import build_meta

    shutil.copytree(ROOT / "d2v", tmp_path / "d2v", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    wheel = build_meta.build_wheel(str(tmp_path / "dist"))
    inside = set(zipfile.ZipFile(tmp_path / "dist" / wheel).namelist())
    own = {str(path.relative_to(ROOT)) for path in ROOT.glob("d2v/**/*") if path.suffix in (".py", ".typed")}
    assert own <= inside and not [name for name in inside if name.startswith(("tests", "recipes", "benchmarks"))]
