"""Transformers' model and ours with the same random weights, and how far each is from the same in float64.

No bound here is a number that one machine's kernels gave: what is computed in fp32 or in 16 bits may be twice as far
from float64 as transformers' result in the same precision, and a few units in the last place besides.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import d2v
from d2v.hub import rename

TABLE: dict[str, dict[str, float | str]] = {}
"""Class -> column -> largest difference, filled by `tests/models/test_every_class.py` and printed after the tests."""

ULPS = {torch.float32: 16, torch.bfloat16: 2, torch.float16: 2}
"""Units in the last place of the largest value that a result may be off, however near transformers' comes by chance.

Most needed, with any of the kernels that an AVX2 CPU can be told to use: 4 in fp32, for five logits; 1 in bf16.
"""

EXACT = 1e-9
"""What differs in float64 by less, as a share of the largest value, is the same."""


def pair(name: str, implementation: str = "eager", **config):
    """Both models in evaluation mode; `config` holds entries that both configurations know."""
    ours = getattr(d2v, name)
    kind = ours.config_class.__name__
    their_config = getattr(transformers, kind)(**config)
    their_config._attn_implementation = implementation
    theirs = getattr(transformers, name)(their_config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases are zero and norms one at first, which would hide mistakes
            parameter.add_(0.02 * torch.randn_like(parameter))
        for buffer in theirs.buffers():
            if buffer.is_floating_point():  # means and variances of batch norms
                buffer.add_(0.02 * torch.rand_like(buffer))
    ours = ours(getattr(d2v, kind)(**config, attn_implementation=implementation)).eval()
    weights = {rename(key, ours.renames, to_ours=True): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(ours.adapt_weights(weights))
    return theirs, ours


def exact(model):
    """The same model in float64, a copy; of transformers', which computes some losses in fp32, the losses too."""
    model = copy.deepcopy(model).double()
    if isinstance(model, transformers.PreTrainedModel):
        forward = model.forward

        @functools.wraps(forward)
        def in_float64(*args, **kwargs):
            with mock.patch.object(F, "log_softmax", wide_log_softmax), mock.patch.object(Tensor, "float", wide_float):
                return forward(*args, **kwargs)

        model.forward = in_float64
    return model


def wide_log_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return x.log_softmax(dim, dtype=x.dtype if x.dtype == torch.float64 else dtype)


def wide_float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def widened(inputs: dict) -> dict:
    """A model's inputs in float64 where they are floating point."""
    wide = {key: x.double() for key, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return inputs | wide


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a share of the largest value where that is above 1."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def assert_as_close(
    ours: Tensor | Sequence[Tensor],
    theirs: Tensor | Sequence[Tensor],
    reference: Tensor | Sequence[Tensor],
    precision: torch.dtype = torch.float32,
) -> float:
    """Assert that ours is at most twice as far from the reference as theirs, and some ulps of its largest value.

    Args:
        ours, theirs: computed in `precision`, or a few such tensors, which count as one.
        reference: the same in float64.
        precision: the narrowest type that they went through.

    Returns:
        The largest difference between ours and theirs, as a share of the largest value.
    """
    ours, theirs, reference = ([x] if isinstance(x, Tensor) else list(x) for x in (ours, theirs, reference))
    assert [x.shape for x in ours] == [x.shape for x in theirs] == [x.shape for x in reference]
    assert all(x.dtype == torch.float64 for x in reference)
    assert all(x.isfinite().all() for x in ours)  # `max` below passes over NaN

    def far(these: list[Tensor], those: list[Tensor]) -> float:
        pairs = zip(these, those, strict=True)
        return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs if a.numel())

    largest = max(float(x.detach().abs().max()) for x in reference if x.numel())
    ulps = ULPS[precision] * torch.finfo(precision).eps * largest
    found, allowed = far(ours, reference), 2 * far(theirs, reference) + ulps
    assert found <= allowed, f"{found:.2e} from float64; allowed are {allowed:.2e}, of which {ulps:.2e} for ulps"
    return far(ours, theirs) / largest if largest else far(ours, theirs)


def gradients_of(model, renames=()) -> dict[str, Tensor]:
    """Copies of the gradients, by name; with `renames` as transformers calls them."""
    return {rename(key, renames): p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that gradients, both in float64, are the same up to a share of the largest."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert all((found[key] - expected[key]).abs().max() <= EXACT * largest for key in expected)


def same_gradients(theirs, ours, reference) -> float:
    """Assert that the same weights have gradients, as close to the reference's; returns `assert_as_close`'s share."""
    found, expected, wanted = gradients_of(ours, ours.renames), gradients_of(theirs), gradients_of(reference)
    assert found.keys() == expected.keys() == wanted.keys()
    return assert_as_close(*([gradients[key] for key in wanted] for gradients in (found, expected, wanted)))


def same_outputs(theirs, ours, objective: Callable | None = None, **inputs):
    """Assert that all outputs are as close, and the gradients of `objective(output)`.

    Returns:
        The outputs of ours, of theirs and of theirs in float64.
    """
    reference = exact(theirs)
    outputs = ours(**inputs), theirs(**inputs), reference(**widened(inputs))
    caches = ("past_key_values", "cache")
    keys = [key for key, value in outputs[1].items() if value != () and key not in caches]
    assert [key for key in outputs[0] if key not in ("auxiliary_logits", *caches)] == keys
    for key in keys:
        # A loss comes from logits, and is as uncertain as they are, however near to float64 theirs is by chance.
        group = [key, *(other for other in keys if "logits" in other)] if key == "loss" else [key]
        assert_as_close(*(flat([output[name] for name in group]) for output in outputs))
    if objective is not None:
        for output in outputs:
            objective(output).backward()
        same_gradients(theirs, ours, reference)
    return outputs


def same_loss_in_float64(theirs, ours, **inputs) -> None:
    """Assert that both models have the same loss and gradients in float64.

    For CTC: in fp32 a clip's log probability, hundreds of nats, is rounded, and its gradients are off by as much as
    luck has it.
    """
    models = exact(theirs), exact(ours)
    losses = [model(**widened(inputs)).loss for model in models]
    for loss in losses:
        loss.backward()
    assert apart(losses[1], losses[0]) < EXACT
    assert_same_gradients(gradients_of(models[1], ours.renames), gradients_of(models[0]))


def spread(output) -> Tensor:
    """A scalar that every logit moves, or every last state."""
    return spread_of(output["logits" if "logits" in output else "last_hidden_state"])


def spread_of(x: Tensor) -> Tensor:
    return (x * torch.linspace(-1, 1, x.shape[-1])).square().sum()


def flat(values) -> list[Tensor]:
    """The tensors of nested tuples."""
    return [values] if isinstance(values, Tensor) else [x for value in values for x in flat(value)]


def same_updates(theirs, ours, batches: list[dict], steps: int = 50, lr: float = 1e-3) -> None:
    """Assert that both models' losses stay the same while AdamW trains them on the same batches.

    In float64: in fp32 weights whose gradient is zero but for rounding, as the keys' biases, go where rounding sends
    them, and the losses of two equal models part.
    """
    models = (exact(theirs).train(), exact(ours).train())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=lr) for model in models]
    for step in range(steps):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            loss = model(**widened(batches[step % len(batches)])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-6), step


def opens_both_ways(theirs, ours, tmp_path, **inputs) -> None:
    """Assert that each side loads what the other saved, with no weight missing or unexpected, to the same output."""
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    options = {"attn_implementation": "eager"}
    loaded = type(ours).from_pretrained(tmp_path / "theirs", **options)
    assert torch.equal(loaded(**inputs)[0], ours(**inputs)[0])
    opened, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    # Not bit for bit, which they are not to themselves either: kernels depend on where in memory weights lie.
    assert apart(exact(opened)(**widened(inputs))[0], exact(theirs)(**widened(inputs))[0]) < EXACT
