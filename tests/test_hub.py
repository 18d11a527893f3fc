"""Checkpoints from and to the hub, of which every call is faked or made offline."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file

from d2v import push
from d2v.errors import InputError
from d2v.hub import in_place_of
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.pretrained import push_folder
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

    def download(repo, name, revision=None):
        asked.append((repo, name, revision))
        if not (folder / name).is_file():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert loads("someone/model", model)
    assert set(asked) == {("someone/model", "config.json", None), ("someone/model", "model.safetensors", None)}
    asked.clear()
    assert loads("someone/model@refs/pr/3", model)  # many have their safetensors in a pull request's branch alone
    assert {(repo, revision) for repo, _, revision in asked} == {("someone/model", "refs/pr/3")}
    as_pickle(folder)
    assert loads("someone/model", model)
    (folder / "config.json").unlink()
    assert complaint("someone/model").startswith("someone/model: no config.json")


def test_out_of_reach(monkeypatch):
    def download(repo, name, revision=None):
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


@pytest.fixture
def hub(monkeypatch):
    """A hub that takes everything; returns what it was asked to do."""
    calls = []

    class HfApi:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_folder(self, repo_id, folder_path):
            files = sorted(path for path in Path(folder_path).rglob("*") if path.is_file())
            calls.append((repo_id, {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in files}))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    return calls


def test_push_to_hub(hub, model, folder):
    assert model.push_to_hub("me/model", private=True, token="secret") == "https://hub/commit/1"
    assert hub[:2] == [("token", "secret"), ("me/model", {"private": True, "exist_ok": True})]
    assert hub[2] == ("me/model", {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")})


def test_a_run_is_pushed_with_all_that_its_model_needs(hub, folder, tmp_path, capsys):
    """A model that was pushed without its processor could not be used."""
    best = folder.rename(tmp_path / "best")
    with pytest.raises(SystemExit) as exit:
        push.main([str(tmp_path), "me/model"])
    message = "best: no preprocessor_config.json, without which a pushed model"
    assert exit.value.code == 2 and message in capsys.readouterr().err and not hub
    for name in (
        "preprocessor_config.json",
        "vocab.json",
        "adapter/adapter_config.json",
        ".cache/x",
        "model.safetensors.tmp",
    ):
        (best / name).parent.mkdir(exist_ok=True)
        (best / name).write_text("{}")
    (best / "README.md").write_text('d2v.auto.from_pretrained("best")\nrun.py --model best --data.path DIR')
    push.main([str(tmp_path), "me/model", "--private"])
    assert capsys.readouterr().out == "https://hub/commit/1\n"
    names = ["README.md", "adapter/adapter_config.json", "config.json", "model.safetensors", "preprocessor_config.json"]
    names += ["vocab.json"]
    assert hub[1] == ("me/model", {"private": True, "exist_ok": True}) and list(hub[2][1]) == names
    card = b'd2v.auto.from_pretrained("me/model")\nrun.py --model me/model --data.path DIR'
    assert hub[2][1]["README.md"] == card and b'"best"' in (best / "README.md").read_bytes()
    (best / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    push.main([str(best), "me/model"])  # a model's folder itself
    assert json.loads(hub[-1][1]["adapter/adapter_config.json"]) == {"base_model_name_or_path": None}
    assert list(hub[-1][1]) == names


@pytest.mark.parametrize(
    ("kind", "name", "files", "missing"),
    [
        ("audio", "Data2VecAudioForCTC", ["preprocessor_config.json"], "vocab.json"),
        ("audio", "Data2VecAudioForCTC", ["vocab.json"], "preprocessor_config.json"),
        ("audio", "Data2VecAudioForCTC", ["processor_config.json", "vocab.json"], None),
        ("audio", "Data2VecAudioModel", ["preprocessor_config.json"], None),
        (
            "text",
            "Data2VecTextModel",
            ["preprocessor_config.json", "vocab.json"],
            "tokenizer.json, nor vocab.json with",
        ),
        ("text", "Data2VecTextModel", ["merges.txt", "vocab.json"], None),
        ("text", "Data2VecTextModel", ["tokenizer.json"], None),
        ("vision", "Data2VecVisionModel", ["tokenizer.json", "vocab.json"], "preprocessor_config.json"),
    ],
)
def test_what_a_model_needs_depends_on_its_class(hub, tmp_path, kind, name, files, missing):
    config = {"model_type": f"data2vec-{kind}", "architectures": [name]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in ("model.safetensors", *files):
        (tmp_path / file).write_text("{}")
    if missing:
        with pytest.raises(InputError, match=f"^{tmp_path}: no {missing}"):
            push_folder(tmp_path, "me/model")
    else:
        assert push_folder(tmp_path, "me/model")
    assert bool(hub) == (missing is None)


def test_whatever_the_client_raises_is_one_line(monkeypatch, folder):
    class ConnectError(Exception):
        """Of a library of its own, and no OSError."""

    def unreachable(*args, **options):
        raise ConnectError("Temporary failure\nin name resolution")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    for name in ("preprocessor_config.json", "vocab.json"):
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match=r"cannot be pushed to the hub \(Temporary failure in name resolution\)"):
        push_folder(folder, "me/model")


def test_a_push_that_fails_says_how_to_try_again_and_tells_no_token(monkeypatch, folder):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("preprocessor_config.json", "vocab.json"):
        (folder / name).write_text("{}")
    with pytest.raises(InputError) as caught:
        push_folder(folder, "me/model")  # offline
    message = str(caught.value)
    assert message.startswith("me/model: cannot be pushed to the hub (") and "\n" not in message
    assert message.endswith(f"; python -m d2v.push {folder} me/model tries again") and "secret" not in message


def test_a_file_on_a_disk_that_machines_share_is_written_by_several(tmp_path):
    """Each writes one of its own beside it: the first to end took away what the second was writing."""
    with in_place_of(tmp_path / "a") as first, in_place_of(tmp_path / "a") as second:
        first.write_text("one")
        second.write_text("two")
    assert (tmp_path / "a").read_text() == "one" and list(tmp_path.iterdir()) == [tmp_path / "a"]
