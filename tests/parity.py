"""Transformers' model and ours with the same random weights, and how far apart their numbers are."""

import pytest
import torch
import transformers

import d2v
from d2v.pretrained import rename

TABLE: dict[str, dict[str, float | str]] = {}
"""Class -> column -> largest difference, filled by `tests/models/test_every_class.py` and printed after the tests."""


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


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value where that is above 1."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def same_gradients(theirs, ours, tolerance: float = 1e-5) -> None:
    """Assert that the same weights have gradients, equal up to a share of the largest."""
    found = {rename(name, ours.renames): p.grad for name, p in ours.named_parameters() if p.grad is not None}
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    assert max((found[name] - wanted[name]).abs().max() for name in wanted) < tolerance * largest


def same_updates(theirs, ours, batches: list[dict], steps: int = 50, lr: float = 1e-3) -> None:
    """Assert that both models' losses stay within 1e-3 of each other while AdamW trains them on the same batches."""
    models = (theirs.train(), ours.train())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=lr) for model in models]
    for step in range(steps):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            loss = model(**batches[step % len(batches)]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), step


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
    assert apart(opened(**inputs)[0], theirs(**inputs)[0]) < 1e-6
