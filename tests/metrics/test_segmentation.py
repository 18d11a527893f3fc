"""Mean IoU: by hand, under three rules, and beside torchmetrics."""

import pytest
import torch

from d2v.errors import InputError
from d2v.metrics.segmentation import class_metrics, note_pixels, pixel_counts, segmentation_metrics, write_class_table
from tests.helpers import make_job

PREDICTIONS = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
REFERENCES = torch.tensor([[[0, 0], [1, 0]], [[0, 0], [0, 0]]])


def counted(predictions, references, classes):
    return [pixel_counts(*pair, classes) for pair in zip(predictions, references, strict=True)]


def test_golden_values_under_each_rule():
    """Three classes, the last one absent: 6/7 and 1/2 over the data set."""
    counts = counted(PREDICTIONS, REFERENCES, 3)
    metrics = segmentation_metrics(sum(counts))
    assert metrics["mean_iou"] == pytest.approx(0.6786, abs=5e-5)
    assert (metrics["mean_accuracy"], metrics["overall_accuracy"]) == (pytest.approx((6 / 7 + 1) / 2), 7 / 8)
    assert segmentation_metrics(sum(counts), absent=0)["mean_iou"] == pytest.approx(0.4524, abs=5e-5)
    alone = torch.stack([class_metrics(each)[0] for each in counts])  # each image's own, which is not what is reported
    assert alone.nanmean().item() == pytest.approx(0.7222, abs=5e-5)


def test_a_class_that_is_only_predicted_counts_as_nothing():
    metrics = segmentation_metrics(pixel_counts(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 3))
    assert metrics == {"mean_iou": 0.25, "mean_accuracy": 0.5, "overall_accuracy": 0.5}


def test_ignored_pixels_count_nowhere():
    prediction, reference = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    assert pixel_counts(prediction, reference, 2).tolist() == [[1, 1]] * 3
    with pytest.raises(InputError, match="a label map of 1 x 3 pixels for a reference of 3 x 1; should be of one size"):
        pixel_counts(prediction, reference.T, 2)
    with pytest.raises(InputError, match="not one pixel to score"):
        segmentation_metrics(pixel_counts(prediction, torch.full_like(prediction, 255), 2))


@pytest.mark.parametrize("seed", range(5))
def test_equals_torchmetrics_over_the_data_set(seed):
    from torchmetrics.functional.classification import multiclass_jaccard_index

    generator = torch.Generator().manual_seed(seed)
    references = torch.randint(0, 6, (4, 9, 7), generator=generator)
    predictions = torch.where(torch.rand(references.shape, generator=generator) < 0.6, references, references % 5)
    references[torch.rand(references.shape, generator=generator) < 0.2] = 255
    found = segmentation_metrics(sum(counted(predictions, references, 6)))["mean_iou"]
    expected = multiclass_jaccard_index(predictions, references, 6, ignore_index=255)
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_the_table_of_classes(tmp_path):
    write_class_table(sum(counted(PREDICTIONS, REFERENCES, 3)), ["sky", "tree, bush", "sea"], tmp_path / "classes.csv")
    lines = [
        "class,iou,accuracy,share",
        "sky,0.8571,0.8571,0.8750",
        '"tree, bush",0.5000,1.0000,0.1250',
        "sea,,,0.0000",
    ]
    assert (tmp_path / "classes.csv").read_text("utf-8") == "\n".join(lines) + "\n"


def test_ignored_pixels_and_absent_classes_are_said(capsys):
    job = make_job()
    counts = pixel_counts(torch.tensor([[0, 1]]), torch.tensor([[0, 255]]), 3)
    note_pixels(job, "test", counts, 2, ["a", "b", "c"])
    note_pixels(job, "test", counts, 2, ["a", "b", "c"])  # as after every epoch
    assert capsys.readouterr().out.splitlines() == [
        "test: 50.0% of the pixels are ignored",
        "test: 2 of 3 classes have no pixel: b, c",
    ]
    note_pixels(job, "validation", pixel_counts(torch.tensor([[0, 1]]), torch.tensor([[1, 0]]), 2), 2, ["a", "b"])
    assert not capsys.readouterr().out
