"""`python -m benchmarks.claim` from end to end on tiny data: its rows, its verdicts, and that it goes on."""

import json

import datasets
import pytest

from benchmarks import claim
from tests.test_configs import photo


@pytest.mark.slow
def test_a_claim_of_images(tmp_path, capsys):
    for seed, (split, count) in enumerate({"train": 60, "test": 12}.items()):
        rows = [photo(split, 100 * seed + i) | {"label": i % 2} for i in range(count)]
        (tmp_path / "data").mkdir(exist_ok=True)
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"data/{split}.parquet")
    args = ["vision", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", "--shares=0.1,1", "--seeds=2"]
    args += ["--pretraining-seeds=1", "--minutes=0.02", "--updates=2", "--precision=fp32"]
    args += ["--arms", "scratch", "scratch_longer", "both", "--pretraining=--data.batch_size=4"]
    claim.main(args)
    rows = [json.loads(line) for line in (tmp_path / "out/claim.json").read_text("utf-8").splitlines()]
    found = [(row["arm"], row["share"], row["seed"]) for row in rows]
    judged = [(arm, 0.1, seed) for arm in ("scratch", "scratch_longer", "both") for seed in (0, 1)]
    assert sorted(found) == sorted([*judged, ("scratch", 1.0, 0), ("both", 1.0, 0)])
    assert all(0 <= row["value"] <= 1 and row["minutes"] > 0 and row["metric"] == "accuracy" for row in rows)
    assert min(row["minutes"] for row in rows if row["arm"] == "both") > 0.01  # its pretraining is counted
    said = capsys.readouterr().out
    assert "both errs" in said and "against scratch_longer" in said and (tmp_path / "out/claim.png").is_file()

    before = (tmp_path / "out/claim.json").read_text("utf-8")
    claim.main(args)  # all is there
    assert (tmp_path / "out/claim.json").read_text("utf-8") == before
