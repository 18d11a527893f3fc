"""Checkpoints from and to the hub, of which every call is faked or made offline."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file

from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from tests.tiny import TINY_AUDIO


@pytest.fixture(scope="module")
def model():
    return Data2VecAudioForCTC(Data2VecAudioConfig(**TINY_AUDIO))


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def loads(source, model):
    """Whether this loads as that model."""
    ours, theirs = Data2VecAudioForCTC.from_pretrained(source, verbose=False).state_dict(), model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def complaint(source):
    """The one line that refuses a source."""
    with pytest.raises(InputError) as caught:
        Data2VecAudioForCTC.from_pretrained(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_from_the_hub(folder, model, monkeypatch, tmp_path):
    asked = []

    def download(repo, name):
        asked.append((repo, name))
        if not (folder / name).is_file():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert loads("someone/model", model)
    assert set(asked) == {("someone/model", "config.json"), ("someone/model", "model.safetensors")}
    as_pickle(folder)
    assert loads("someone/model", model)
    (folder / "config.json").unlink()
    assert complaint("someone/model").startswith("someone/model: no config.json")


def test_out_of_reach(monkeypatch):
    def download(repo, name):
        raise LocalEntryNotFoundError("Cannot find the requested files\nin the disk cache")

    assert "hub cannot be reached" in complaint("someone/nothing")  # really offline, see conftest.py
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert complaint("someone/model").startswith("someone/model: not a folder, and the hub cannot be reached")
    monkeypatch.undo()
    assert complaint("not/a/folder/x").startswith("not/a/folder/x: neither a folder nor a hub repository")


def test_offline_a_file_known_to_be_missing_is_missing(monkeypatch, tmp_path, folder, model):
    # A cache as the hub's client leaves it, of a repository with pytorch_model.bin alone.
    commit, repo = "0" * 40, tmp_path / "hub/models--someone--model"
    for part in ("refs", f"snapshots/{commit}", f".no_exist/{commit}"):
        (repo / part).mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    (repo / f"snapshots/{commit}/config.json").write_text((folder / "config.json").read_text())
    as_pickle(folder)
    (folder / "pytorch_model.bin").rename(repo / f"snapshots/{commit}/pytorch_model.bin")
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (repo / f".no_exist/{commit}/{name}").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert loads("someone/model", model)


def test_push_to_hub(monkeypatch, model, tmp_path):
    calls = []

    class HfApi:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_folder(self, repo_id, folder_path):
            assert loads(folder_path, model)
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    assert model.push_to_hub("me/model", private=True, token="secret") == "https://hub/commit/1"
    assert calls == [
        ("token", "secret"),
        ("me/model", {"private": True, "exist_ok": True}),
        ("me/model", ["config.json", "model.safetensors"]),
    ]
