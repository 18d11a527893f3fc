"""From images to label maps: sliding windows, several scales, mirrored; overlays."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from d2v.decode.segmentation import draw_overlays, images_loss, label_map, whole_logits, window_logits
from d2v.models.vision import Data2VecVisionConfig
from d2v.models.vision_heads import Data2VecVisionForSemanticSegmentation
from d2v.training.validation import VALIDATION, Validation, counting_loss
from tests.tiny import TINY_VISION


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Data2VecVisionConfig(**TINY_VISION, num_labels=5, use_relative_position_bias=True, initializer_range=0.2)
    return Data2VecVisionForSemanticSegmentation(config).eval().requires_grad_(False)


def image(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(24, 24), (17, 30), (1, 1), (3, 40)])
def test_any_size_is_padded_to_whole_patches(model, size):
    found = whole_logits(model, image(*size))
    assert found.shape == (1, 5, *size)
    rows, columns = (max(8, -(-side // 4) * 4) for side in size)
    padded = F.pad(image(*size), (0, columns - size[1], 0, rows - size[0]))
    expected = F.interpolate(model(padded).logits, (rows, columns), mode="bilinear")[:, :, : size[0], : size[1]]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(24, 24), (13, 24), (24, 7)])
def test_one_window_that_covers_all_is_the_whole_image(model, size):
    assert torch.equal(window_logits(model, image(*size), 24, 16), whole_logits(model, image(*size)))


def test_windows_overlap_and_end_with_the_image(model):
    """40 wide, windows of 24 every 10: from 0, 10, and 16, the last one moved back."""
    x = image(20, 40)
    found, total, count = window_logits(model, x, 24, 10), torch.zeros(1, 5, 20, 40), torch.zeros(40)
    for left in (0, 10, 16):
        total[..., left : left + 24] += whole_logits(model, x[..., left : left + 24])
        count[left : left + 24] += 1
    assert torch.allclose(found, total / count, atol=1e-6) and count.min() == 1


@pytest.mark.parametrize("window", [None, 16])
def test_the_loss_of_images_is_that_of_crops_by_the_forward_that_predicts(model, window, monkeypatch):
    """A whole image, or windows of 16 from 0 and 8: each pixel of each counts, and what is not labelled does not."""
    pixels, labels, stride = image(16, 24)[0], torch.randint(5, (16, 24)).byte(), window and 8
    labels[3], computed, heads = 255, [], model.config.semantic_loss_ignore_index
    monkeypatch.setattr(model, "forward", lambda *args, forward=model.forward, **kwargs: (
        computed.append(1), forward(*args, **kwargs))[1])  # fmt: skip
    parts = [slice(0, 24)] if window is None else [slice(0, 16), slice(8, 24)]
    target = labels[None].long().masked_fill(labels == 255, heads)
    expected = [model(pixels[None, :, :, part], labels=target[..., part]) for part in parts]
    counts = [15 * (part.stop - part.start) for part in parts]
    computed.clear()
    found = Validation(lambda model, batch: images_loss(model, [pixels], [labels], window, stride))
    token = VALIDATION.set(found)
    with counting_loss(model, {"labels": labels}):
        label_map(model, pixels, (16, 24), window=window, stride=stride)
    VALIDATION.reset(token)
    assert len(computed) == len(parts) and found.items == sum(counts)
    total = sum(float(output.loss) * count for output, count in zip(expected, counts, strict=True))
    assert found.total == pytest.approx(total, rel=1e-5)


def test_views_are_averaged(model):
    x, size = image(24, 32)[0], (20, 27)
    views = []
    for scale in (0.5, 1.0):
        for flip in (False, True):
            y = F.interpolate(x[None], (round(24 * scale), round(32 * scale)), mode="bilinear", antialias=True)
            y = whole_logits(model, y.flip(3) if flip else y)
            views.append(F.interpolate(y.flip(3) if flip else y, size, mode="bilinear").softmax(1)[0])
    assert torch.equal(label_map(model, x, size, scales=[0.5, 1.0], flip=True), sum(views).argmax(0))
    assert torch.equal(label_map(model, x, size), views[2].argmax(0))
    assert torch.equal(label_map(model, x, size, window=64, stride=64), views[2].argmax(0))


def test_a_mirrored_image_gives_the_mirrored_map(model):
    x = image(24, 32)[0]
    found, mirrored = (label_map(model, each, (24, 32), flip=True) for each in (x, x.flip(2)))
    assert (found == mirrored.flip(1)).float().mean() > 0.99  # but for ties


@pytest.mark.parametrize("reference", [True, False])
def test_overlays(tmp_path, reference):
    picture, labels = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)
    labels[:10] = 255
    rows = [(picture, labels if reference else None, labels)] * 2
    draw_overlays(rows, ["sky", "sea"], tmp_path / "overlays.png")
    drawn = np.asarray(Image.open(tmp_path / "overlays.png").convert("RGB"))
    assert drawn.std() > 10
