"""No forward pass of an update asks the device what a tensor holds, which would make the host wait for it.

A tensor on `meta` holds nothing: whoever asks it fails. What a batch keeps on the host is there. Nor does a copy to the
device wait for what the device has yet to do, where that is safe.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from d2v import devices
from d2v.config import Optim
from d2v.models.pretraining import Teacher
from d2v.training import engine, loop, pretraining, teaching
from d2v.training.engine import to_device
from d2v.training.optim import build_average
from tests.helpers import RECIPES
from tests.recipes.common import runner
from tests.test_configs import write_like
from tests.training.test_processes import small

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class Questions(TorchDispatchMode):
    """Which operators asked a tensor on the device what it holds; ones that `meta` lacks give what they would."""

    def __init__(self):
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        tensors = [each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        on_device = [each for each in tensors if each.device.type == "meta"]
        if on_device and name in ASKING:
            self.asked.append(name)
        if on_device and name == "_to_copy" and str((kwargs or {}).get("device")) == "cpu":
            self.asked.append("copied to the host")
        if name == "_to_copy" and not on_device and str((kwargs or {}).get("device")) == "meta":
            self.asked += [] if kwargs.get("non_blocking") else ["copied to the device, and waited"]
        if name == "index" and on_device and len(on_device) < len(tensors):
            self.asked.append("places copied to the device, and waited")
        if on_device and name in ("_ctc_loss", "ctc_loss"):
            assert all(each.device.type == "cpu" for each in tensors[2:])  # lengths, which else are fetched
            return args[0].new_empty(args[0].shape[1]), args[0].new_empty(1)
        return function(*args, **(kwargs or {}))


class Factories(TorchFunctionMode):
    """Tensors that are made of numbers on the device, which is a copy that the host waits for."""

    def __init__(self, asked):
        super().__init__()
        self.asked = asked

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.Tensor.new_tensor) and result.device.type == "meta":
            self.asked.append("made on the device")
        return result


def test_the_host_goes_on_during_a_copy_where_that_is_safe():
    """Apple's GPUs read a temporary tensor's memory when something else may be there (pytorch #139550)."""
    assert [devices.overlaps(torch.device(kind)) for kind in ("cuda", "mps", "cpu")] == [True, False, False]


class Stop(Exception):
    """The first update was looked at."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_update_asks_the_device_nothing(tmp_path, monkeypatch, recipe):
    write_like(recipe, None, None, tmp_path / recipe)
    check_first_update(monkeypatch, recipe, *small(recipe, tmp_path / recipe), f"--run.out={tmp_path / 'out'}")


def test_frames_of_classes_ask_the_device_nothing_either(tmp_path, monkeypatch):
    recipe = "audio_frame_classification"
    write_like(recipe, None, None, tmp_path / recipe)
    options = [*small(recipe, tmp_path / recipe), "--task=frames", f"--run.out={tmp_path / 'out'}"]
    check_first_update(monkeypatch, recipe, *options)


def check_first_update(monkeypatch, recipe, *args):
    """Run a recipe up to its first update, on `meta`; it should ask nothing."""
    found, teachers = {}, []

    def look(model, update, loss_fn, accelerator, extra=tuple):
        model.to("meta").train()
        for teacher in teachers:
            teacher.to("meta")
        with Questions() as questions, Factories(questions.asked):
            for batch in update:
                loss, _ = loss_fn(model, to_device(batch, torch.device("meta")))
        found.update(asked=questions.asked, device=loss.device.type, batch=batch)
        raise Stop

    def make_teacher(*args, **options):
        teachers.append(Teacher(*args, **options))
        return teachers[-1]

    enabled, autocast = torch.is_autocast_enabled, torch.autocast  # which do not know of `meta`
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and enabled(kind))
    monkeypatch.setattr(torch, "autocast", lambda kind, **more: autocast("cpu" if kind == "meta" else kind, **more))
    for module in (devices, engine):
        monkeypatch.setattr(module, "overlaps", lambda device: True)  # as to CUDA
    monkeypatch.setattr(loop, "accumulate", look)
    monkeypatch.setattr(pretraining, "accumulate", look)
    monkeypatch.setattr(teaching, "Teacher", make_teacher)
    monkeypatch.setattr(loop, "try_evaluation", lambda *rest: None)
    with pytest.raises(Stop):
        runner(recipe)(*args, "--run.max_steps=1")
    assert found["device"] == "meta" and found["asked"] == []
    for name, value in found["batch"].items():
        if isinstance(value, torch.Tensor) and "mask" in name:
            assert value.dtype == torch.bool or value.shape[1] < 1000, name  # of samples, eight bytes each
    assert np.isfinite(float(found["batch"]["size"]))


def test_numbers_of_the_host_are_added_up_there(monkeypatch):
    """However many pieces there are, one copy takes them to the device's, and is not waited for."""
    monkeypatch.setattr(devices, "overlaps", lambda device: True)
    monkeypatch.setattr(loop, "keeping_casts", lambda *rest: nullcontext())
    accelerator = SimpleNamespace(device=torch.device("meta"), autocast=nullcontext, backward=lambda loss: None)
    accelerator.no_sync = lambda model: nullcontext()
    accelerator.reduce = lambda sums: torch.zeros(len(sums)) if sums.device.type == "meta" else None
    losses = [torch.zeros((), device="meta"), torch.tensor(3)]
    with Questions() as questions, Factories(questions.asked):
        sums = loop.accumulate(None, [{"size": 2.5}] * 3, lambda *_: losses, accelerator, extra=lambda: [True])
    assert questions.asked == [] and len(sums) == 4


def test_the_moving_average_counts_on_the_host():
    model = torch.nn.Linear(2, 2, device="meta")
    average = build_average(model, Optim(ema=0.9))
    with Questions() as questions, Factories(questions.asked):
        for _ in range(3):
            average.update_parameters(model)
    assert questions.asked == [] and int(average.n_averaged) == 3
