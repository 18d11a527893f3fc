"""Notebooks can be trusted as they stand: executed once from top to bottom, small, without a trace of the machine, and
made of imports and commands that exist. Marked slow: they run.
"""

import ast
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from tests.helpers import ROOT, parse_command

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
MOST_BYTES = 600_000  # of a notebook, its outputs included


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parse(cell) -> ast.Module:
    """The cell's Python; a line of the shell becomes a call of `get_ipython().system`."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def texts(cell) -> list[str]:
    """What a cell printed or showed, but for the content of pictures and sounds."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        found += [output.get("text", ""), *(data[kind] for kind in data if kind.startswith("text/"))]
    return [re.sub(r"base64,[^\"]*", "", text) for text in found]


def test_they_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["keras", "speech", "text", "vision"]


def test_was_executed_once_from_top_to_bottom(cells):
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.source for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    assert "" not in (cell.source.strip() for cell in cells)
    shells = [cell for cell in cells if "\n!" in f"\n{cell.source}"]
    shown = [cell for cell in cells if re.search(r"^(?:Audio|Image)\(|plt\.subplots", cell.source, re.MULTILINE)]
    assert shells and shown and all(cell.outputs for cell in shells + shown)


def test_outputs_are_small_and_plain(path, cells):
    assert path.stat().st_size <= MOST_BYTES
    for text in (text for cell in cells for text in texts(cell)):
        assert not re.search(r"[\r\x1b]|\d%\|", text), f"a progress bar or colours: {text!r:.200}"
        assert not re.search(r"""(?:^|[\s"'=(\[])(?:~|[A-Z]:)?[/\\]\w+[/\\]""", text, re.MULTILINE), f"{text!r:.200}"


def test_one_trains_in_its_own_process():
    """Through the loop, in a cell that shows a picture and says how each evaluation went."""
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells if "fit(job" in cell.source]
    assert cells
    for cell in cells:
        assert "!" not in cell.source.replace("!=", "")
        assert {output.output_type for output in cell.outputs} == {"display_data", "stream"}
        assert "best so far" in "".join(texts(cell)) and "image/png" in cell.outputs[0].data


def test_imports_exist(path, cells):
    if path.stem == "keras":  # here on PyTorch's backend; when it runs on TensorFlow's, in a process of its own
        pytest.importorskip("keras", reason="Keras is not installed")
    for statement in (statement for cell in cells for statement in ast.walk(parse(cell))):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            exec(ast.unparse(statement), {})


def test_commands_parse(cells):
    """Each with the parser of what it runs; recipes lie one folder up."""
    calls = [call for cell in cells for call in ast.walk(parse(cell)) if isinstance(call, ast.Call)]
    commands = [call.args[0].value for call in calls if ast.unparse(call.func) == "get_ipython().system"]
    assert all(parse_command(command.partition(" 2>&1")[0].replace("../", "")) for command in commands)


@pytest.mark.slow
def test_runs(path, cells, tmp_path, monkeypatch):
    """In a copy, beside the recipes; an exception fails, and where something was shown something is."""
    if path.stem == "keras" and not (importlib.util.find_spec("keras") and importlib.util.find_spec("tensorflow")):
        pytest.skip("Keras or TensorFlow is not installed")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    copy = shutil.copy(path, tmp_path / "notebooks")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(copy, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    again = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for before, after in zip(cells, again, strict=True):
        kinds, found = ({output.output_type for output in cell.outputs} for cell in (before, after))
        assert kinds <= found, before.source
