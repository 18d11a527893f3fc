"""Which rows are held out: by class, by group, in one piece, and in parts that add up."""

import json
import math
from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from benchmarks.recipe import load_recipe
from d2v.config import Data
from d2v.data.audio import AudioData
from d2v.data.labels import LabelData
from d2v.data.language_modeling import LanguageData
from d2v.data.load import choose_splits, load_also
from d2v.data.multiple_choice import ChoiceData
from d2v.data.question_answering import QuestionData
from d2v.data.rows import Split
from d2v.data.splits import parts, share_of_classes, whole_groups
from d2v.errors import InputError
from tests.helpers import make_job


def chosen(source, data, mode="train", seed=0, target="label", model=None):
    """The splits that a job of this data gets, and its facts."""
    import datasets

    tables = {name: datasets.Dataset.from_dict(columns) for name, columns in source.items()}
    job = make_job(data, mode, seed=seed, model=model)
    splits = choose_splits(job, tables, {"text": "text"}, {target: target} if target else {})
    return splits, job


def line(job, fact="splits"):
    """The line of a fact."""
    (found,) = [each["line"] for each in job.facts if each["fact"] == fact]
    return found


def columns(count, **others):
    return {"text": [f"t{i}" for i in range(count)]} | others


@pytest.mark.parametrize("seed", range(5))
def test_a_share_is_held_out_by_class(seed):
    labels = ["often"] * 60 + ["rare"] * 10 + ["twice"] * 2 + ["once"]
    splits, job = chosen({"train": columns(73, label=labels)}, LabelData(validation_share=0.2), seed=seed)
    learnt, held = (splits[name].column("label") for name in ("train", "validation"))
    assert set(learnt) == set(labels) and (held.count("often"), held.count("rare")) == (12, 2)
    assert len(held) == 15 and held.count("once") == 0 and held.count("twice") == 1
    assert sorted(splits["train"].column("text") + splits["validation"].column("text")) == sorted(columns(73)["text"])
    assert line(job) == (
        "demo: train on 58 rows of train, validate on 15 rows held out of train (data.validation_share 0.2, by class)"
    )


def test_classes_with_a_row_each_are_held_out_at_random():
    splits, job = chosen({"train": columns(10, label=list("abcdefghij"))}, LabelData())
    assert len(splits["validation"]) == 1 and "by class" not in line(job)


def test_shares_of_classes_by_hand():
    order = np.arange(10)
    held = share_of_classes(list("aaaaabbbcc"), 0.4, 4, order)
    assert held.tolist() == [True, True, False, False, False, True, False, False, True, False]
    assert share_of_classes(list("aaabbb"), 0.9, 6, np.arange(6)[::-1]).tolist() == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_held_out_whole(seed):
    people = [f"p{i // 7}" for i in range(70)]
    labels = ["a" if i < 63 else "b" for i in range(70)]  # b is the tenth group's alone
    data = LabelData(group_column="who", validation_share=0.2)
    splits, job = chosen({"train": columns(70, who=people, label=labels)}, data, seed=seed)
    learnt, held = (set(splits[name].column("who")) for name in ("train", "validation"))
    assert len(held) == 2 and not learnt & held and "p9" in learnt
    assert line(job).endswith("held out of train (data.validation_share 0.2, by who)")


ABOUT_ONE = [QuestionData(context_column="text"), ChoiceData(prompt_column="text"), AudioData(audio_column="text")]


@pytest.mark.parametrize("data", ABOUT_ONE, ids=["contexts", "prompts", "recordings"])
def test_rows_of_one_text_or_recording_are_held_out_together(data):
    """As they are in one file of questions about texts, or of parts of recordings."""
    source = {"train": {"text": [f"t{i // 5}" for i in range(50)]}}
    splits, job = chosen(source, data, target=None)
    learnt, held = (set(splits[name].column("text")) for name in ("train", "validation"))
    assert len(held) == 1 and len(splits["validation"]) == 5 and not learnt & held
    assert "data.validation_share 0.1, by text" in line(job)
    folds = [
        chosen(source, type(data)(**vars(data) | {"fold": f"{i}/3"}), "evaluate", target=None)[0]["test"]
        for i in (1, 2, 3)
    ]
    sides = [set(fold.column("text")) for fold in folds]
    assert sum(map(len, sides)) == 10 == len(set.union(*sides)) and sum(map(len, folds)) == 50

    for texts in (["t"] * 20, ["t", "u"] * 10):  # too few to hold one out
        splits, job = chosen({"train": {"text": texts}}, data, target=None)
        assert len(splits["validation"]) == 2
        assert "(data.validation_share 0.1; 2 of them are of the same text as rows of train, see" in line(job)
    fold, job = chosen({"train": {"text": ["t"] * 20}}, type(data)(**vars(data) | {"fold": "1/3"}), target=None)
    assert len(fold["test"]) == 7 and "(data.fold 1/3; 7 of them are of the same text as rows of" in line(job)


def test_files_in_the_table_may_be_called_anything():
    import datasets

    sounds = [{"bytes": b"RIFF", "path": "audio.wav"}] * 10 + [
        {"bytes": None, "path": f"{i // 5}.wav"} for i in range(40)
    ]
    table = datasets.Dataset.from_dict({"audio": sounds})
    split = Split("train", table, np.arange(50)[::-1], (("train", 50),))
    assert split.groups("audio") == [f"{i // 5}.wav" for i in reversed(range(40))] + [None] * 10


def test_groups_on_both_sides_of_the_users_splits_are_said(capsys):
    source = {
        "train": columns(4, who=list("aabc")),
        "validation": columns(2, who=list("bd")),
        "test": columns(2, who=list("ca")),
    }
    _, job = chosen(source, Data(group_column="who"), target=None)
    lines = [each["line"] for each in job.facts if each["fact"] == "groups on both sides"]
    assert lines == [
        "who: 1 groups are in train and in validation; the first is 'b'",
        "who: 2 groups are in train and in test; the first is 'a'",
    ]
    assert lines[1] in capsys.readouterr().out
    with pytest.raises(InputError, match=r"no column 'site' \(data.group_column\); there are text, who"):
        chosen(source, Data(group_column="site"), target=None)


def test_rows_without_a_group_are_each_their_own():
    people = [None] * 15 + ["a"] * 15
    splits, job = chosen(
        {"train": columns(30, who=people)}, Data(group_column="who", validation_share=0.2), target=None
    )
    assert "a" in splits["train"].column("who") or "a" in splits["validation"].column("who")
    assert len({value for split in splits.values() for value in split.column("who")}) == 2
    assert line(job, "no group") == "who: 15 rows have none, and are held out each by itself"
    assert not [fact for fact in job.facts if fact["fact"] == "groups on both sides"]


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ([date(2020, 1, 1), date(2020, 1, 2), date(2020, 1, 3)], ""),
        ([["a"], ["b"], ["c"]], ""),
        ([b"a", b"b", b"c"], ""),
        ([Decimal(1), Decimal(2), Decimal(3)], ""),
        ([1.0, 2.0, None, math.nan], "who: 20 rows have none"),
        (["a", "b", " ", ""], "who: 20 rows have none"),
        (
            ["a ", "a", "b", "\u00e9", "e\u0301"],
            "who: 2 groups differ from others in white space or accents",
        ),
    ],
)
def test_groups_of_any_type_are_text(kinds, said):
    people = [kinds[i % len(kinds)] for i in range(40)]
    splits, job = chosen({"train": columns(40, who=people)}, Data(group_column="who"), target=None)
    learnt, held = (splits[name].groups() for name in ("train", "validation"))
    assert all(isinstance(value, str | None) for value in [*learnt, *held]) and not {*learnt} & {*held} - {None}
    assert said in " ".join(fact["line"] for fact in job.facts) and len(job.facts) == 1 + bool(said)


def test_one_group_of_two_files_as_number_and_as_text_is_said():
    source = {"train": columns(9, who=list(range(9))), "test": columns(2, who=["1.5", "7"])}
    _, job = chosen(source | {"validation": columns(1, who=[math.nan])}, Data(group_column="who"), target=None)
    assert line(job, "groups on both sides") == "who: 1 groups are in train and in test; the first is '7'"


def test_too_few_groups_are_named():
    with pytest.raises(InputError, match="1 groups are too few to hold one out"):
        chosen({"train": columns(20, who=["a"] * 20)}, Data(group_column="who"), target=None)
    with pytest.raises(InputError, match="data.fold: 2 groups are too few for 3 parts"):
        chosen({"train": columns(20, who=list("ab") * 10)}, Data(group_column="who", fold="1/3"), target=None)


@pytest.mark.parametrize("options", [{}, {"group_column": "who"}])
@pytest.mark.parametrize("mode", ["train", "evaluate", "predict"])
def test_folds_add_up(options, mode):
    count = 53
    source = {"train": columns(count, label=["a", "b", "b"] * 17 + ["c", "c"], who=[i // 4 for i in range(count)])}
    tested = []
    for k in range(1, 5):
        splits, job = chosen(source, LabelData(fold=f"{k}/4", **options), mode)
        test = splits["test"]
        tested += [test.number(i) for i in range(len(test))]
        assert 10 <= len(test) <= 17 and abs(test.column("label").count("b") - 34 / 4) < 3
        assert test.where(0).startswith("train, row ") and f"of train (data.fold {k}/4)" in line(job)
        if mode == "train":
            groups = [
                set(splits[name].column("who" if options else "text")) for name in ("train", "validation", "test")
            ]
            assert not groups[0] & groups[1] and not (groups[0] | groups[1]) & groups[2]
            assert sum(len(splits[name]) for name in splits) == count
    assert sorted(tested) == list(range(count))


@pytest.mark.parametrize("label", ["label", "target"])
def test_a_fold_has_the_same_rows_in_all_modes(label):
    source = {"train": columns(53, **{label: ["a", "b", "b"] * 17 + ["c", "c"]})}
    tested = [chosen(source, LabelData(fold="2/4"), mode)[0]["test"] for mode in ("train", "evaluate", "predict")]
    assert tested[0].numbers().tolist() == tested[1].numbers().tolist() == tested[2].numbers().tolist()


def test_a_split_that_is_tested_besides_takes_no_other_s_place():
    data = load_recipe("text_classification").ClassificationData(also={"train": "train"})
    with pytest.raises(InputError, match="data.also: train is a split of the run; should be another ending"):
        load_also(make_job(data, "evaluate"), dict, inputs={})


def test_a_split_that_is_tested_besides_is_no_fold():
    """The fold of train was scored a second time under the name of the other split."""
    import datasets

    train, other = columns(53, label=["a", "b"] * 26 + ["a"]), columns(7, label=["a"] * 7)
    source = {name: datasets.Dataset.from_dict(it) for name, it in (("train", train), ("mismatched", other))}
    data = load_recipe("text_classification").ClassificationData(fold="2/4", also={"mm": "mismatched"})
    found = load_also(make_job(data, "evaluate"), lambda: source, inputs={"text": "text"}, targets={"label": "label"})
    assert len(found["mm"]) == 7 and found["mm"].where(0).startswith("mismatched")


def test_a_fold_is_not_tested_where_no_test_is_wanted():
    """As a sweep trains, which chooses by validation."""
    splits, _ = chosen({"train": columns(53, label=["a", "b"] * 26 + ["a"])}, LabelData(fold="2/4", test_split=None))
    assert list(splits) == ["train", "validation"] and sum(map(len, splits.values())) == 40


def test_a_fold_of_several_labels_has_the_same_rows_in_evaluation(tmp_path):
    """Where nobody says of what type the labels are, the model does."""
    settings = {"problem_type": "multi_label_classification", "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    source = {"train": columns(50, label=["a;b", "c"] * 25)}
    options = {"fold": "1/5", "label_separator": ";"}
    trained, _ = chosen(source, LabelData(problem_type="multi_label", **options))
    scored, _ = chosen(source, LabelData(**options), "evaluate", model=str(tmp_path))
    assert trained["test"].numbers().tolist() == scored["test"].numbers().tolist()


def test_a_fold_is_not_all_that_is_of_one_recording():
    rows = {"text": ["long"] * 90 + [f"t{i}" for i in range(10)]}
    splits, job = chosen({"train": rows}, AudioData(audio_column="text", fold="1/5"), target=None)
    assert len(splits["test"]) == 20 and "of them are of the same text as rows of train" in line(job)


def test_the_largest_group_is_held_out_last():
    rows = columns(1000, who=["big"] * 900 + [f"w{i // 10}" for i in range(100)])
    splits, _ = chosen({"train": rows}, Data(group_column="who"), target=None)
    assert len(splits["validation"]) == 100


def test_splits_with_other_classes_are_joined_by_name():
    import datasets

    tables = {}
    for name, names in {"train": ["a", "b"], "other": ["b", "c"]}.items():
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        tables[name] = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features)
    job = make_job(LabelData(train_split="train+other", validation_split="other"))
    splits = choose_splits(job, tables, {"text": "text"}, {"label": "label"})
    assert splits["train"].column("label") == ["a", "b", "b", "c"]
    tables["other"] = datasets.Dataset.from_dict({"text": [[1], [2]], "label": ["b", "c"]})
    with pytest.raises(InputError, match=r"train\+other: cannot be joined"):
        choose_splits(job, tables, {"text": "text"}, {"label": "label"})


def test_a_sample_says_which_column_has_the_ids(tmp_path):
    (tmp_path / "sample.csv").write_text("PassengerId,label\n2,0\n1,0\n0,0\n")
    data = LabelData(submission=str(tmp_path / "sample.csv"))
    source = {"test": columns(3, passengerid=[1, 0, 2], id=["x", "y", "z"])}
    splits, job = chosen(source, data, "predict")
    assert splits["test"].ids() == ["1", "0", "2"] and "has the rows' ids, as in" in line(job, "column")
    splits, job = chosen({"test": columns(3)}, data, "predict")
    assert splits["test"].ids() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["int32", "uint8", "int64", "string", "large_string", "float64"])
def test_ids_of_a_sample_may_be_of_any_type(tmp_path, kind):
    """Those of 32 bits were passed over, and rows' numbers taken for ids: each prediction was another row's."""
    import datasets

    (tmp_path / "sample.csv").write_text("row,label\n7,0\n9,0\n8,0\n")
    features = datasets.Features({"text": datasets.Value("string"), "row": datasets.Value(kind)})
    rows = ["9", "7", "8"] if "string" in kind else [9, 7, 8]
    data = load_recipe("text_classification").ClassificationData(submission=str(tmp_path / "sample.csv"))
    job = make_job(data, "predict")
    table = datasets.Dataset.from_dict(columns(3, row=rows), features=features)
    if kind == "float64":
        with pytest.raises(InputError, match=r"column 'row' has the ids of .*sample.csv as float64; should be text or"):
            choose_splits(job, {"test": table}, {"text": "text"})
        return
    assert choose_splits(job, {"test": table}, {"text": "text"})["test"].ids() == ["9", "7", "8"]
    job = make_job(data, "predict")
    choose_splits(job, {"test": table.rename_column("row", "line")}, {"text": "text"})
    assert "no column is called 'row'" in line(job, "ids") and "rows are called by their numbers" in line(job, "ids")


@pytest.mark.parametrize("fold", ["0/3", "4/3", "1/1", "a/b", "1", "1/2/3"])
def test_impossible_folds(fold):
    with pytest.raises(InputError, match="data.fold should be a part and how many there are, such as 2/5"):
        chosen({"train": columns(9)}, Data(fold=fold), target=None)


def test_parts_are_of_one_size():
    assert sorted(np.bincount(parts(11, 3, 0, None, None, running=False)).tolist()) == [3, 4, 4]
    assert parts(6, 3, 0, None, None, running=True).tolist() == [0, 0, 1, 1, 2, 2]
    classes = list("aaaabbcc")
    dealt = parts(8, 2, 1, classes, None, running=False)
    assert all(sorted(np.array(classes)[dealt == part]) == list("aabc") for part in (0, 1))


def test_the_last_group_of_a_class_stays():
    held = whole_groups(list("ppqqrr"), 4, np.arange(6), list("xxxxyy"))
    assert held.tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("seed", range(3))
def test_running_text_is_held_out_in_one_piece(seed):
    data = LanguageData(separator="\n", validation_share=0.25, max_train_samples=5, max_test_samples=2)
    splits, job = chosen({"train": columns(12), "test": columns(4)}, data, seed=seed, target=None)
    assert splits["train"].column("text") == [f"t{i}" for i in range(5)]
    assert splits["validation"].column("text") == ["t9", "t10", "t11"]
    assert splits["test"].column("text") == ["t0", "t1"]
    assert "(data.validation_share 0.25, the end of the text)" in line(job)
    documents, _ = chosen({"train": columns(12)}, LanguageData(validation_share=0.25), seed=seed, target=None)
    assert documents["validation"].column("text") != ["t9", "t10", "t11"]  # each row is its own


# What the splits of a source are used for

NAMES = {
    "dev": ({"train": 4, "dev": 2, "test": 1}, {}, {"train": "train", "validation": "dev", "test": "test"}),
    "val": ({"train": 4, "val": 2}, {}, {"train": "train", "validation": "val"}),
    "valid": ({"training": 4, "valid": 2}, {}, {"train": "training", "validation": "valid"}),
    "capitals": (
        {"Train": 4, "Validation": 2, "TEST": 1},
        {},
        {"train": "Train", "validation": "Validation", "test": "TEST"},
    ),
    "eval and test": ({"train": 4, "eval": 2, "test": 1}, {}, {"train": "train", "validation": "eval", "test": "test"}),
    "dev and eval": ({"train": 4, "dev": 2, "eval": 1}, {}, {"train": "train", "validation": "dev", "test": "eval"}),
    "exact first": ({"train": 4, "val": 2, "validation": 1}, {}, {"train": "train", "validation": "validation"}),
    "a name of one's own": (
        {"train": 4, "val": 2, "other": 1},
        {"validation_split": "other", "test_split": "validation"},
        {"train": "train", "validation": "other", "test": "val"},
    ),
    "year": ({"train2017": 4, "val2017": 2}, {}, {"train": "train2017", "validation": "val2017"}),
    "joined": (
        {"train-a": 4, "train-b": 2, "dev": 1},
        {"train_split": "train-a+train-b"},
        {"train": "train-a+train-b", "validation": "dev"},
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_splits_under_the_names_that_people_give_them(case):
    rows, options, expected = NAMES[case]
    splits, job = chosen({name: columns(count) for name, count in rows.items()}, Data(**options), target=None)
    assert {name: "+".join(part for part, _ in split.parts) for name, split in splits.items()} == expected
    fact = next(each for each in job.facts if each["fact"] == "splits")
    assert {name: "+".join(each["of"]) for name, each in fact["splits"].items()} == expected


def test_the_line_of_splits(capsys):
    source = {"train": columns(9), "val": columns(2), "test": columns(1), "extra": columns(1)}
    _, job = chosen(source, Data(), target=None)
    said = "demo: train on 9 rows of train, validate on 2 rows of val, test on 1 row of test; not used: extra"
    assert line(job) == said and capsys.readouterr().out == said + "\n"
    assert json.loads((job.out / "data.json").read_text())["facts"][0]["unused"] == ["extra"]
    _, job = chosen(source, Data(validation_split="train", test_split="val+train"), target=None)
    said = "train on 9 rows of train, validate on 9 rows of train, as train has, test on 11 rows of val+train"
    assert line(job) == f"demo: {said}, as train has; not used: test, extra"
    _, job = chosen(source, Data(test_split="extra"), "predict", target=None)
    assert line(job) == "demo: predict 1 row of extra; not used: train, val, test"
    _, job = chosen({"train": columns(3)}, Data(), "evaluate", target=None)
    assert line(job) == "demo: test on 3 rows"


def test_several_splits_that_may_be_meant_are_named():
    source = {"train": columns(9), "dev-clean": columns(1), "dev-other": columns(1)}
    message = (
        r"demo: dev-clean, dev-other may be meant by 'validation'; name one \(data.validation_split\), or dev-clean\+"
    )
    with pytest.raises(InputError, match=message):
        chosen(source, Data(), target=None)
    source = {"train": columns(9), "dev": columns(1), "test-clean": columns(1), "test-other": columns(1)}
    splits, job = chosen(source, Data(), target=None)
    assert set(splits) == {"train", "validation"}  # training goes on without a test
    assert line(job, "test not used").startswith("test-clean, test-other may be meant by 'test', so none is used")
    with pytest.raises(InputError, match=r"demo: test-clean, test-other may be meant by 'test'; name one"):
        chosen(source, Data(), "evaluate", target=None)


NO_LABELS = {
    "no column": {},
    "empty": {"label": ["", ""]},
    "null": {"label": [None, None]},
    "-1": {"label": [-1, -1]},
}


@pytest.mark.parametrize("case", NO_LABELS)
def test_a_test_without_labels_leaves_validation_to_be_scored(case):
    labels = [0, 1] * 5 if case == "-1" else ["a", "b"] * 5
    held = {"text": ["x", "y"]}
    source = {"train": columns(10, label=labels), "test": held | NO_LABELS[case]}
    splits, job = chosen(source, LabelData(validation_share=0.2))
    assert set(splits) == {"train", "validation"}
    assert line(job, "unlabelled split").startswith("test: has no labels (")
    assert line(job, "unlabelled split").endswith("so validation is used in its place")
    splits, job = chosen(source | {"validation": source["test"]}, LabelData(validation_share=0.2))
    assert len(splits["validation"]) == 2 and splits["validation"].parts[0][0] == "train"
    splits, _ = chosen(source, LabelData(), "predict")
    assert splits["test"].column("text") == ["x", "y"]


def test_a_damaged_train_stops_no_evaluation(tmp_path):
    from d2v.data.load import read

    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "test.csv").write_text("text,label\nx,a\n")
    data = LabelData(path=str(tmp_path))
    splits = choose_splits(make_job(data, "evaluate"), read(data), {"text": "text"}, {"label": "label"})
    assert splits["test"].column("label") == ["a"]
    with pytest.raises(InputError, match="train.parquet: not readable as parquet"):
        choose_splits(make_job(data), read(data), {"text": "text"}, {"label": "label"})
