"""CTC against torch's own module, transformers' forward and a sum over all alignments; PIT against all orders."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from d2v import losses
from d2v.losses import IGNORE, ctc, pit_bce
from tests.parity import EXACT, apart, exact

BLANK = 0
SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)


def batch(blank=BLANK):
    """Logits (4, 12, 6), ragged labels (4, 5) and lengths; the third row has no labels, the fourth has one."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 12, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 2, 2, 3, 4], [4, 4, 1, -100, -100], [-100] * 5, [3, -100, -100, -100, -100]])
    return logits, labels.where(labels != blank, 0), torch.tensor([12, 9, 4, 1])


def by_torch(logits, labels, lengths, blank, reduction, zero_infinity=False):
    """`torch.nn.CTCLoss` with its own padded form of the labels."""
    targets = labels.masked_fill(labels == IGNORE, 0 if blank else 1)
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    loss = torch.nn.CTCLoss(blank=blank, reduction=reduction, zero_infinity=zero_infinity)
    return loss(log_probs, targets, lengths, (labels != IGNORE).sum(1))


@pytest.mark.parametrize("blank", [0, 4])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equals_torch(blank, reduction):
    logits, labels, lengths = batch(blank)
    total, count = ctc(logits, labels, lengths, blank=blank, reduction=reduction)
    assert count == 4 and count.dtype == torch.int64
    ours = total / count if reduction == "mean" else total
    theirs = by_torch(logits, labels, lengths, blank, reduction)
    assert apart(ours, theirs) < EXACT
    (gradient,), (expected,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    assert apart(gradient, expected) < EXACT
    for row, length in zip(gradient, lengths, strict=True):
        assert not row[length:].any() and row[:length].any()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_equals_transformers(monkeypatch, reduction, zero_infinity):
    from transformers import Data2VecAudioConfig, Data2VecAudioForCTC
    from transformers.modeling_outputs import BaseModelOutput

    config = Data2VecAudioConfig(
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=6,
        conv_dim=(6,),
        conv_kernel=(1,),
        conv_stride=(1,),
        num_conv_pos_embeddings=1,
        num_conv_pos_embedding_groups=1,
        vocab_size=6,
        pad_token_id=BLANK,
        ctc_loss_reduction=reduction,
        ctc_zero_infinity=zero_infinity,
    )
    model = exact(Data2VecAudioForCTC(config).eval())
    model.lm_head.weight.data.copy_(torch.eye(6))
    model.lm_head.bias.data.zero_()
    logits, labels, lengths = batch()
    lengths[0] = 5 if zero_infinity else 12  # five labels, two of them equal, do not fit into five frames
    # Their loss on these logits: the body hands them on, the head is the identity, a sample is a frame.
    monkeypatch.setattr(model.data2vec_audio, "forward", lambda *args, **kwargs: BaseModelOutput(logits))
    mask = (torch.arange(12) < lengths[:, None]).long()
    theirs = model(torch.zeros(4, 12), attention_mask=mask, labels=labels).loss
    total, count = ctc(logits, labels, lengths, blank=BLANK, zero_infinity=zero_infinity, reduction=reduction)
    assert apart(total / count if reduction == "mean" else total, theirs) < EXACT


def test_equals_the_sum_over_all_alignments():
    logits, labels, length = torch.randn(1, 4, 3, dtype=torch.float64), [1, 1], 4
    probabilities, total = logits[0].softmax(-1), 0.0
    for path in itertools.product(range(3), repeat=length):
        if [token for token, _ in itertools.groupby(path) if token != BLANK] == labels:
            total += torch.stack([probabilities[t, token] for t, token in enumerate(path)]).prod()
    loss, _ = ctc(logits, torch.tensor([labels]), torch.tensor([length]), blank=BLANK)
    assert apart(loss, -total.log()) < EXACT


def test_the_host_computes_it_for_apples_gpus(monkeypatch):
    """Whose tensors are played by ones that hold nothing."""
    devices = []

    def ctc_loss(log_probs, labels, *rest, **options):
        devices.append((log_probs.device.type, labels.device.type))
        return log_probs[0].sum(1)

    monkeypatch.setattr(F, "ctc_loss", ctc_loss)
    with torch.no_grad(), FakeTensorMode(shape_env=ShapeEnv()):
        labels, lengths = torch.ones(2, 3, dtype=torch.int64), torch.full((2,), 9)
        total, _ = ctc(torch.zeros(2, 9, 5, device="mps"), labels, lengths, blank=BLANK)
    assert devices == [("cpu", "cpu")] and total.device.type == "mps"


def test_labels_that_do_not_fit():
    logits, labels, lengths = batch()
    lengths[0] = 5
    with_infinity, _ = ctc(logits, labels, lengths, blank=BLANK)
    assert with_infinity.isinf()
    without, count = ctc(logits, labels, lengths, blank=BLANK, zero_infinity=True)
    rest, _ = ctc(logits[1:], labels[1:], lengths[1:], blank=BLANK)
    assert apart(without, rest) < EXACT
    assert count == 4
    (gradient,) = torch.autograd.grad(without, logits)
    assert not gradient[0].any() and gradient[1].any() and gradient.isfinite().all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_sum_and_count_add_up_over_parts_of_a_batch(reduction, cut):
    logits, labels, lengths = batch()
    whole = ctc(logits, labels, lengths, blank=BLANK, reduction=reduction)
    # A part is padded to its own longest row, as when it is a batch of its own.
    parts = []
    for rows in (slice(None, cut), slice(cut, None)):
        longest, most = int(lengths[rows].max()), max(int((labels[rows] != IGNORE).sum(1).max()), 1)
        part = logits[rows, :longest], labels[rows, :most], lengths[rows]
        parts.append(ctc(*part, blank=BLANK, reduction=reduction))
    for i in range(2):
        assert apart(parts[0][i] + parts[1][i], whole[i]) < EXACT


def test_padding_neither_of_frames_nor_of_labels_counts():
    logits, labels, lengths = batch()
    expected, _ = ctc(logits, labels, lengths, blank=BLANK)
    longer = F.pad(logits.detach(), (0, 0, 0, 3), value=9.0)
    padded_with_blank = F.pad(labels, (0, 2), value=IGNORE).masked_fill(F.pad(labels, (0, 2), value=-100) < 0, BLANK)
    # Of a -1 torch's function would read the memory before the row's probabilities.
    for padded in (F.pad(labels, (0, 2), value=IGNORE), padded_with_blank, labels.clamp(min=-1)):
        assert apart(ctc(longer, padded, lengths, blank=BLANK)[0], expected) < EXACT


def test_sixteen_bit_logits_are_summed_in_32():
    logits, labels, lengths = batch()
    rounded = logits.detach().bfloat16()
    loss, _ = ctc(rounded, labels, lengths, blank=BLANK)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ctc(rounded.float(), labels, lengths, blank=BLANK)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Speakers in any order
# ---------------------------------------------------------------------------------------------------------------------

CLIPS = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))  # B, T, C and a seed


def speech(batch, frames, speakers, seed):
    """Logits, activity of which a fifth is unknown, and a generator."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, frames, speakers, generator=generator, dtype=torch.float64)
    labels = (torch.rand(logits.shape, generator=generator) < 0.5).double()
    unknown = torch.rand(logits.shape, generator=generator) < 0.2
    return logits, labels.masked_fill(unknown, IGNORE), generator


def test_two_speakers_by_hand():
    """Each output knows the other's speaker; in the last frame, in which both speak, one of them is missed."""
    activity = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 1]]], dtype=torch.float64)
    heard = activity.flip(-1).clone()
    heard[0, 3] = torch.tensor([0.0, 1.0])
    loss, count = pit_bce(2 * (2 * heard - 1), activity)  # logits of 2 or -2
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert loss.item() == pytest.approx(7 * right + wrong, rel=EXACT) and count == 8
    assert loss < F.binary_cross_entropy_with_logits(2 * (2 * heard - 1), activity, reduction="sum")


def test_nothing_heard_costs_a_bit_each():
    loss, count = pit_bce(torch.zeros(2, 5, 3, dtype=torch.float64), torch.ones(2, 5, 3))
    assert loss.item() == pytest.approx(30 * math.log(2), rel=EXACT) and count == 30


@given(CLIPS)
@SETTINGS
def test_pit_is_the_least_over_all_orders(clips):
    logits, labels, _ = speech(*clips)
    expected = 0.0
    for outputs, speakers in zip(logits, labels, strict=True):
        by_order = []
        for order in itertools.permutations(range(logits.shape[2])):
            pairs = zip(outputs[:, order].flatten(), speakers.flatten(), strict=True)
            by_order.append(sum(F.binary_cross_entropy_with_logits(a, b).item() for a, b in pairs if b != IGNORE))
        expected += min(by_order)
    loss, count = pit_bce(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=EXACT)
    assert count == (labels != IGNORE).sum()


@given(CLIPS)
@SETTINGS
def test_pit_forgets_the_order_of_each_clip(clips):
    logits, labels, generator = speech(*clips)
    loss, count = pit_bce(logits, labels)
    for tensor in (logits, labels):
        for row in tensor:
            row.copy_(row[:, torch.randperm(row.shape[1], generator=generator)])
    again, as_many = pit_bce(logits, labels)
    assert apart(again, loss) < EXACT
    assert as_many == count


@given(CLIPS)
@SETTINGS
def test_pit_adds_up_over_clips_and_ignores_padding(clips):
    logits, labels, _ = speech(*clips)
    whole = pit_bce(F.pad(logits, (0, 0, 0, 2), value=9.0), F.pad(labels, (0, 0, 0, 2), value=IGNORE))
    parts = [pit_bce(logits[i : i + 1], labels[i : i + 1]) for i in range(len(logits))]
    for i in range(2):
        assert apart(sum(part[i] for part in parts), whole[i]) < EXACT


@pytest.mark.parametrize("kind", ["numbers", "probabilities", "multi_label"])
def test_a_rare_class_is_not_the_answer_to_all_smoothed_labels(kind):
    """With torch's weights of a smoothed label's classes it is, above nine times as many of the others as classes."""
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    weight = torch.tensor([100 / 90, 100 / 9, 100.0])
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)  # those of each class
    several = torch.nn.functional.one_hot(labels, 3).double()
    given, problem = {
        "numbers": (labels, "single_label_classification"),
        "probabilities": (several, "single_label_classification"),
        "multi_label": (several, "multi_label_classification"),
    }[kind]
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        total, count = losses.classification(logits[labels], given, problem, weight=weight, label_smoothing=0.1)
        (total / count).backward()
        return total / count

    optimizer.step(closure)
    found = logits.sigmoid() if kind == "multi_label" else logits.softmax(1)
    expected = 0.9 * torch.eye(3) + (0.05 if kind == "multi_label" else 0.1 / 3)
    assert torch.allclose(found, expected.double(), atol=0.01)


def test_pit_decides_between_equal_orders():
    """Outputs that are alike at first, as zeros are, must become different."""
    logits = torch.zeros(1, 4, 2, requires_grad=True)
    loss, _ = pit_bce(logits, torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]]))
    loss.backward()
    assert torch.equal(logits.grad[0, :, 0], -logits.grad[0, :, 1]) and (logits.grad.abs() == 0.5).all()


def test_weighted_classes_are_torchs():
    """The mean is torch's, whatever the pieces a batch is computed in; of probabilities by their weights."""
    logits, weight = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 2, losses.IGNORE, 0])
    total, count = losses.cross_entropy(logits, labels, weight=weight)
    assert torch.allclose(total / count, torch.nn.functional.cross_entropy(logits, labels, weight))
    maps = losses.cross_entropy(logits.T[None], labels[None], weight=weight)
    assert all(map(torch.allclose, maps, (total, count)))
    parts = [losses.cross_entropy(*pair, weight=weight) for pair in zip(logits.split(2), labels.split(2), strict=True)]
    whole = losses.cross_entropy(logits, labels, weight=weight)
    assert all(torch.allclose(sum(part), each) for part, each in zip(zip(*parts, strict=True), whole, strict=True))
    kept = labels != losses.IGNORE
    soft = torch.nn.functional.one_hot(labels[kept], 3).double()
    assert all(map(torch.allclose, losses.cross_entropy(logits[kept], soft, weight=weight), whole))
    kind = "single_label_classification"
    assert torch.allclose(losses.classification(logits[kept], labels[kept], kind, weight=weight)[0], whole[0])
    several = torch.tensor([[1.0, 0.0, 1.0]] * 6, dtype=torch.float64)
    total, count = losses.classification(logits, several, "multi_label_classification", weight=weight)
    mean = torch.nn.functional.binary_cross_entropy_with_logits(logits, several, pos_weight=weight)
    assert torch.allclose(total / count, mean)
    smooth = losses.classification(logits, several, "multi_label_classification", label_smoothing=0.2)[0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, several * 0.8 + 0.1, reduction="sum")
    assert torch.allclose(smooth, expected)


def test_a_misspelt_type_of_problem_is_no_other():
    with pytest.raises(ValueError, match="single_label_classification, .* or regression, not 'regresion'"):
        losses.classification(torch.zeros(2, 1), torch.ones(2, 1), "regresion")


def test_choices_of_rows_that_have_more_or_fewer():
    """Smoothing is spread over the choices that a row has; by hand, a row at a time."""
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, -1.0, 3.0]], requires_grad=True)
    labels, smoothing = torch.tensor([0, 2]), 0.2
    expected = torch.zeros(())
    for row, label in ((logits[0, :2], 0), (logits[1], 2)):
        log = row.log_softmax(0)
        expected = expected - ((1 - smoothing) * log[label] + smoothing * log.mean())
    total, count = losses.choice(logits, labels, label_smoothing=smoothing)
    total.backward()
    assert total.item() == pytest.approx(expected.item()) and int(count) == 2 and logits.grad.isfinite().all()
    plain, _ = losses.choice(logits, labels)
    assert torch.equal(plain, losses.cross_entropy(logits, labels)[0])
