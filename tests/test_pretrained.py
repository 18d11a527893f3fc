"""Checkpoints: every file format, what does not fit, what is damaged or hostile. For the hub see test_hub.py."""

import json
import os
import resource
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from d2v import pretrained
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.audio_heads import Data2VecAudioForCTC
from tests.tiny import TINY_AUDIO

SIZES = TINY_AUDIO | {"vocab_size": 5}


@pytest.fixture
def model():
    return Data2VecAudioForCTC(Data2VecAudioConfig(**SIZES))


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(source, cls=Data2VecAudioForCTC, **changes):
    return cls.from_pretrained(source, verbose=False, **changes)


def complaint(source, **changes):
    with pytest.raises(InputError) as caught:
        load(source, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def as_shards(folder, weights_file, write):
    """Split the weights over two files; returns the path of their index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, _, suffix = weights_file.partition(".")
    parts = {f"{stem}-{i + 1:05d}-of-00002.{suffix}": sorted(weights)[i::2] for i in range(2)}
    for file, keys in parts.items():
        write({key: weights[key] for key in keys}, folder / file)
    path, files = folder / f"{weights_file}.index.json", {key: file for file, keys in parts.items() for key in keys}
    path.write_text(json.dumps({"weight_map": files}))
    return path


def test_rename_is_a_bijection_on_the_weights(model):
    for ours in model.state_dict():
        for key in (ours, ours.removeprefix("data2vec_audio.")):  # with a head and without
            theirs = pretrained.rename(key, model.renames)
            assert pretrained.rename(theirs, model.renames, to_ours=True) == key
    assert len({pretrained.rename(key, model.renames) for key in model.state_dict()}) == len(model.state_dict())
    for old, new in (("a.1.b.", "x.1.y."), ("aa.1.b.", "aa.1.b."), ("c.a.12.b.", "c.x.12.y."), ("a.1.bc", "a.1.bc")):
        assert pretrained.rename(old, (("a.*.b.", "x.*.y."),)) == new


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pickle", "pickled shards"])
def test_every_format(folder, model, kind):
    if kind == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif kind != "safetensors":
        as_shards(
            folder, *(("model.safetensors", save_file) if kind == "shards" else ("pytorch_model.bin", torch.save))
        )
    loaded = load(folder)
    assert same(loaded, model) and not loaded.training


def test_dtype_is_float32_unless_asked(folder, model):
    save_file({k: v.half() for k, v in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    assert {parameter.dtype for parameter in load(folder).parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load(folder, torch_dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_dtypes_by_name_and_the_checkpoints_own(folder):
    """As Hugging Face's library takes them."""
    file = folder / "config.json"
    entries = json.loads(file.read_text())
    dtypes = {key: value.half() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(dtypes, folder / "model.safetensors")
    for said, given, wanted in (
        ({}, "bfloat16", torch.bfloat16),
        ({}, "torch.float16", torch.float16),
        ({"dtype": "bfloat16"}, "auto", torch.bfloat16),
        ({"dtype": None, "torch_dtype": "float64"}, "auto", torch.float64),
        ({"dtype": None}, "auto", torch.float16),  # as the weights are
    ):
        file.write_text(json.dumps(entries | said))
        assert {parameter.dtype for parameter in load(folder, torch_dtype=given).parameters()} == {wanted}
        assert {parameter.dtype for parameter in load(folder, dtype=given).parameters()} == {wanted}
        load(folder, dtype=given).save_pretrained(folder.parent / "again")
        written = json.loads((folder.parent / "again/config.json").read_text())
        assert "torch_dtype" not in written and written["dtype"] == str(wanted).removeprefix("torch.")
    for given in ("float17", "int8", torch.int64, 16):
        assert complaint(folder, torch_dtype=given).startswith(f"dtype: {given!r} should be auto or a dtype of ")


def test_body_into_headed_model_and_back(tmp_path, model, folder, capsys):
    body = load(folder, Data2VecAudioModel)
    assert same(body, model.data2vec_audio)
    body.save_pretrained(tmp_path / "body")
    other = Data2VecAudioForCTC.from_pretrained(tmp_path / "body")
    assert same(other.data2vec_audio, model.data2vec_audio) and not same(other, model)
    assert capsys.readouterr().out == (
        "Weights newly initialised, since the checkpoint lacks them: lm_head.bias, lm_head.weight\n"
    )


def test_report(folder, model):
    weights = load_file(folder / "model.safetensors")
    gone = "data2vec_audio.encoder.layers.1.feed_forward.intermediate_dense.bias"
    del weights[gone]
    save_file(weights | {"quantizer.codevectors": torch.ones(2)}, folder / "model.safetensors")
    other = Data2VecAudioForCTC(Data2VecAudioConfig(**SIZES | {"vocab_size": 7}))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    report = pretrained.load_weights(other, folder)
    resized = ["lm_head.bias (5,) instead of (7,)", "lm_head.weight (5, 32) instead of (7, 32)"]
    assert report == pretrained.Report([gone], ["quantizer.codevectors"], report.resized)
    assert str(report).splitlines() == [
        f"Weights newly initialised, since the checkpoint lacks them: {gone}",
        "Weights in the checkpoint but not used: quantizer.codevectors",
        f"Weights of another shape in the checkpoint: {', '.join(resized)}",
    ]
    missing = pretrained.rename(gone, model.renames, to_ours=True)
    for key, value in other.state_dict().items():
        kept = key.startswith("lm_head") or key == missing
        assert torch.equal(value, before[key] if kept else model.state_dict()[key])


def test_what_does_not_fit(folder, tmp_path):
    message = complaint(folder, intermediate_size=16)
    assert "encoder.layers.0.feed_forward" in message and "(64" in message and "(16" in message
    assert "unknown configuration key 'hiden_size'" in complaint(folder, hiden_size=3)
    save_file({"bert.pooler.weight": torch.ones(2)}, folder / "model.safetensors")
    assert "not one weight of Data2VecAudioForCTC" in complaint(folder)
    (folder / "model.safetensors").unlink()
    assert complaint(folder).startswith(f"{folder}: no weights; model.safetensors, ")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "model_type is 'bert'; Data2VecAudioConfig reads 'data2vec-audio'" in complaint(folder)
    for text in ("[1, 2]", "{", ""):
        (folder / "config.json").write_text(text)
        assert complaint(folder).startswith(f"{folder}/config.json: ")
    (folder / "config.json").unlink()
    assert complaint(folder).startswith(f"{folder}: no config.json; ")
    (folder / "best").mkdir()
    (folder / "best/config.json").touch()
    assert complaint(folder).endswith(f"; of a run it is {folder}/best")


def test_pointers_of_git_lfs_are_called_so(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert complaint(folder).endswith("it is a pointer of Git LFS, whose `git lfs pull` brings the file")


def test_shards_that_are_not_there(folder):
    index = as_shards(folder, "model.safetensors", save_file)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert complaint(folder) == f"{index}: names model-00002-of-00002.safetensors, which is not there"
    for text in ("{}", '{"weight_map": {"lm_head.weight": 3}}', '{"weight_map": {"lm_head.weight": ["a"]}}'):
        index.write_text(text)
        assert complaint(folder).startswith(f"{index}: no weight_map")


def test_entries_that_are_to_blame_are_of_the_file(folder):
    """And what the caller changes is not."""
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    for changes, message in (
        ({"hidden_size": "big"}, "Data2VecAudioConfig.hidden_size should be int, not 'big'"),
        ({"num_attention_heads": 0}, "Data2VecAudioConfig.num_attention_heads should be at least 1, not 0"),
        ({"id2label": {"a": "b"}}, "Data2VecAudioConfig: id2label should map numbers to names, not {'a': 'b'}"),
    ):
        file.write_text(json.dumps(whole | changes))
        assert complaint(folder) == f"{folder}: {message}"
    assert complaint(folder, id2label={0: "a"}, layerdrop=2).startswith(f"{folder}: ")
    file.write_text(json.dumps(whole))
    assert complaint(folder, num_attention_heads=0) == (
        "Data2VecAudioConfig.num_attention_heads should be at least 1, not 0"
    )


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9999])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "legacy pytorch_model.bin"])
def test_truncated_file(folder, name, share):
    kind, _, name = name.rpartition(" ")
    if name == "pytorch_model.bin":
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / name, _use_new_zipfile_serialization=not kind)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    assert complaint(folder).startswith(f"{folder}/{name}: ")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_quantised_weights_are_no_numbers(folder, name, dtype):
    """What they stand for, another file says, if any."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
    weights["data2vec_audio.num_batches"] = torch.tensor(3)
    save = save_file if name == "model.safetensors" else torch.save
    save(weights, folder / name)
    said = f"{folder}/{name}: lm_head.weight is {str(dtype)[6:]}; weights are floating point"
    assert complaint(folder) == said


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zip", [True, False])
def test_code_in_a_pickle_does_not_run(folder, tmp_path, zip):
    (folder / "model.safetensors").unlink()
    hostile = {"lm_head.weight": Hostile(tmp_path / "ran")}
    torch.save(hostile, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zip)
    assert complaint(folder).startswith(f"{folder}/pytorch_model.bin: damaged, or holds more than tensors")
    assert not (tmp_path / "ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # where code may run, it does


def test_a_pickle_of_something_else(folder):
    (folder / "model.safetensors").unlink()
    for value in ([torch.ones(1)], {"model": {"w": torch.ones(1)}}, {"lm_head.weight": 3}):
        torch.save(value, folder / "pytorch_model.bin")
        assert "should hold tensors by name" in complaint(folder)


def test_full_disk_leaves_the_last_good_weights(folder, model):
    before = (folder / "model.safetensors").read_bytes()
    model.lm_head.weight.data += 1
    child = os.fork()
    if not child:  # the limit on file sizes cannot be lifted again
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2,) * 2)
        try:
            model.save_pretrained(folder)
        except InputError as error:
            os._exit(2 if "cannot be written" in str(error) and "untouched" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert (folder / "model.safetensors").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.skipif(os.name != "posix", reason="of other systems files have no such modes")
def test_others_may_read_what_was_saved_as_far_as_the_umask_lets_them(model, tmp_path):
    """safetensors writes for the owner alone, so that a colleague could not open a model on a shared disk."""
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        "config.json": 0o640,
        "model.safetensors": 0o640,
    }
