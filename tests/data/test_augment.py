"""Augmentation: the same for the same seed, mixed targets by hand, options that cannot be."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from d2v import losses
from d2v.data.augment import Augment, augmenter, mixer
from d2v.data.labels import Labels
from d2v.errors import InputError
from d2v.processors.image import ImageProcessor

NONE = {"crop": (1.0, 1.0), "flip": 0.0, "rand_augment": 0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
FOUR = Labels(list("abcd"), "single_label")
PLAIN = ImageProcessor(size={"height": 8, "width": 8})


def augmented(seed=(0, 0, 0), image=IMAGE, **options):
    return augmenter(Augment(**NONE | options), PLAIN, (8, 8))(image, seed)


def test_without_augmentation_training_sees_what_evaluation_sees():
    assert torch.equal(augmented(), PLAIN([IMAGE])["pixel_values"][0])
    assert torch.equal(augmented(flip=1.0), PLAIN([IMAGE])["pixel_values"][0].flip(-1))


@pytest.mark.parametrize(
    "options",
    [
        {"crop": (0.1, 0.9)},
        {"flip": 0.5},
        {"rand_augment": 9},
        {"color_jitter": 0.4},
        {"erasing": 1.0},
    ],
)
def test_every_step_changes_images_as_their_seed_says(options):
    seeds = [(run, epoch, row) for run in range(2) for epoch in range(2) for row in range(8)]
    found = [augmented(seed, **options) for seed in seeds]
    assert all(torch.equal(augmented(seed, **options), pixels) for seed, pixels in zip(seeds, found, strict=True))
    assert len({pixels.numpy().tobytes() for pixels in found}) > (1 if "flip" in options else 8)
    assert {pixels.shape for pixels in found} == {(3, 8, 8)}


def test_each_operation_is_done_to_half_of_the_images():
    """As in timm: a quarter and more of the images, those with an identity drawn too, come through as they are."""
    same = [torch.equal(augmented((0, 0, row), rand_augment=9), augmented()) for row in range(300)]
    assert 0.22 < sum(same) / len(same) < 0.45


def test_a_single_pixel_can_be_augmented():
    assert augmented(image=Image.new("RGB", (1, 1)), crop=(0.08, 1.0), rand_augment=9).shape == (3, 8, 8)


def test_mixup_by_hand():
    """Each image with the one before it: what share it keeps is seen in the pixels, and its label has that share."""
    pixels, labels = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8).clone(), torch.tensor([2, 0, 1])
    mixed, targets = mixer(Augment(mixup=0.8, cutmix=0.0), FOUR)(pixels, labels, (0, 0, 5))
    share = mixed[0, 0, 0, 0]
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * pixels + (1 - share) * pixels.roll(1, 0))
    one_hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.roll(1, 0))


def test_cutmix_by_hand():
    """The share of a label is that of the pixels."""
    pixels, labels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).clone(), torch.arange(4)
    for row in range(5):
        mixed, targets = mixer(Augment(mixup=0.0, cutmix=1.0), FOUR)(pixels, labels, (0, 0, row))
        shares = torch.stack([(mixed == i).float().mean((1, 2, 3)) for i in range(4)], dim=1)
        torch.testing.assert_close(targets, shares)


def test_both_take_turns_and_neither_leaves_batches_alone():
    pixels, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    both = mixer(Augment(), FOUR)
    kinds = [bool((both(pixels, labels, (0, 0, row))[0] == pixels).any()) for row in range(30)]
    assert 5 < sum(kinds) < 25  # CutMix leaves some pixels as they were
    assert torch.equal(both(pixels, labels, (0, 0, 1))[0], both(pixels, labels, (0, 0, 1))[0])
    same = mixer(Augment(**NONE), FOUR)(pixels, labels, (0, 0, 1))
    assert same[0] is pixels and same[1] is labels


def test_smoothed_mixed_targets_by_hand():
    """timm's: of C classes, smoothing / C to each and the rest to the labels, by their shares."""
    logits, targets = torch.randn(2, 4), torch.tensor([[0.7, 0.3, 0, 0], [0, 0, 0, 1.0]])
    total, count = losses.cross_entropy(logits, targets, label_smoothing=0.1)
    expected = -((0.9 * targets + 0.1 / 4) * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(total, expected)
    assert count == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0.0, 1.0)}, "augment.crop should be two shares"),
        ({"crop": (0.9, 0.5)}, "augment.crop should be two shares"),
        ({"rand_augment": 11}, "augment.rand_augment should be at most 10, not 11"),
        ({"flip": 1.5}, "augment.flip should be at most 1, not 1.5"),
        ({"mixup": -1.0}, "augment.mixup should be at least 0, not -1"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError, match=message):
        Augment(**options)


def test_augmentation_pickles():
    for function in (augmenter(Augment(), PLAIN, (8, 8)), mixer(Augment(), FOUR)):
        pickle.loads(pickle.dumps(function))


def test_only_single_labels_are_mixed():
    with pytest.raises(InputError, match=r"augment.mixup and augment.cutmix mix single labels; .* in multi_label"):
        mixer(Augment(), Labels(["a", "b"], "multi_label"))
