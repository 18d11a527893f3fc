"""What an installed package has: all rooms, and the mark that says its types can be checked."""

import shutil
import zipfile

import pytest

from tests.helpers import ROOT


def test_every_room_is_a_package():
    folders = {path.parent for path in ROOT.glob("d2v/**/*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_wheel_holds_every_file_of_the_library_and_nothing_else(tmp_path, monkeypatch):
    pytest.importorskip("setuptools", "77", reason="pyproject.toml is written for setuptools 77, which pip would fetch")
    from setuptools import build_meta

    shutil.copytree(ROOT / "d2v", tmp_path / "d2v", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    wheel = build_meta.build_wheel(str(tmp_path / "dist"))
    inside = {name for name in zipfile.ZipFile(tmp_path / "dist" / wheel).namelist() if ".dist-info/" not in name}
    own = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("d2v/**/*") if path.is_file()}
    assert inside == own and "d2v/py.typed" in own
