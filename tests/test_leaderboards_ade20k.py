"""ADE20K's test submission, judged by a checker that is written from the benchmark's description, not from our code."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from d2v.demo.images import png
from d2v.leaderboards import main
from tests.test_leaderboards import Refused, complaint, require, spoiled, write_run

COUNT = 3352


def check_ade20k(path):
    """What the server takes: a grey PNG an image, of its name, with classes 1 to 150; returns the maps by name."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        wanted = {f"ADE_test_{i:08d}.png" for i in range(1, COUNT + 1)}
        require(set(archive.namelist()) == wanted and len(archive.namelist()) == COUNT, "files")
        for name in archive.namelist():
            image = Image.open(io.BytesIO(archive.read(name)))
            require(image.format == "PNG" and image.mode == "L", f"{name}: {image.format} {image.mode}")
            found[name] = np.asarray(image)
            require(found[name].min() >= 1 and found[name].max() <= 150, f"{name}: labels")
    return found


@pytest.fixture
def masks(tmp_path):
    """A run on the test set: a label map of one row for each image, all alike but the last."""
    (tmp_path / "run/masks").mkdir(parents=True)
    rows = []
    for i in range(1, COUNT + 1):
        name = f"ADE_test_{i:08d}"
        rows.append({"id": f"release_test/testing/{name}.jpg", "mask": f"masks/{name}.png"})
        labels = np.array([[0, 149, i % 150]], np.uint8)
        (tmp_path / "run" / rows[-1]["mask"]).write_bytes(png(Image.fromarray(labels)))
    write_run(tmp_path / "run", rows)
    return tmp_path / "run"


def test_the_server_takes_what_we_write(masks, tmp_path, capsys):
    out = tmp_path / "ade20k.zip"
    main(["ade20k", f"--run={masks}", f"--out={out}"])
    found = check_ade20k(out)
    assert all(
        found[f"ADE_test_{i:08d}.png"].tolist() == [[1, 150, i % 150 + 1]] for i in (1, 149, 150, COUNT)
    )  # 0 would be "other"
    assert capsys.readouterr().out == f"{out}: 3352 label maps\n"

    blank, name = np.zeros((1, 3), np.uint8), "ADE_test_00000007.png"
    for change in (
        lambda name, data: (None, data),
        lambda name, data: (name.replace("test", "val"), data),
        lambda name, data: (f"masks/{name}", data),
        lambda name, data: (name, png(Image.fromarray(blank))),
        lambda name, data: (name, png(Image.fromarray(blank + 151))),
        lambda name, data: (name, png(Image.fromarray(blank + 1).convert("RGB"))),
    ):
        with pytest.raises(Refused):
            check_ade20k(spoiled(out, name, change))


def test_a_run_on_other_images_is_refused(masks, tmp_path, capsys):
    rows = [json.loads(line) for line in (masks / "predictions.jsonl").read_text("utf-8").splitlines()]
    command = ["ade20k", f"--run={masks}", f"--out={tmp_path / 'x.zip'}"]

    def refused(rows, message):
        write_run(masks, rows)
        assert re.search(message, complaint(capsys, command))

    refused(rows[1:], "no label map of ADE_test_00000001; 1 of 3352 test images are missing")
    refused([*rows, {"id": "ADE_val_00000001.jpg", "mask": rows[0]["mask"]}], "ADE_val_00000001 is no image of ADE20K")
    refused([{"id": row["id"]} for row in rows], "should be a JSON object with id, mask")
    (tmp_path / "x.zip").write_bytes(b"a good one")
    (masks / rows[9]["mask"]).write_bytes(png(Image.fromarray(np.array([[150]], np.uint8))))
    refused(rows, "label 150; should be 0 to 149, of a model with 150 classes")
    assert (tmp_path / "x.zip").read_bytes() == b"a good one" and not list(tmp_path.glob("*.tmp"))
    (masks / rows[0]["mask"]).unlink()
    refused(rows, "no such file")
