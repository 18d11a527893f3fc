"""Tables: CSV and TSV are text as written, JSON keeps its types, and what cannot be read is named."""

import gzip
import json
import pickle
import re

import pytest

from d2v.config import Data
from d2v.data.load import read
from d2v.data.tables import first_rows, read_table
from d2v.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def rows(tmp_path, name, content, **options):
    """The rows of a file with this content."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(Data(path=str(path), **options))["train"].to_list()


WORDS = ["null", "None", "NA", "N/A", "nan", "007", "0001", "1", "1.0", "True", "false", "-1", "1e5", "2020-01-01", ""]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_csv_is_text(tmp_path, name, delimiter, word):
    content = f"id{delimiter}text\n0001{delimiter}{word}\n"
    assert rows(tmp_path, name, content) == [{"id": "0001", "text": word}]


UNCLOSED = {
    "the last field": 'text,label\n"a, b",c\nd,"e\nf,g\nh,i\n',
    "two of them": 'text,label\n"a\nb",c\nd,"e\nf,g\nh,"i\nj,k\n',
}


@pytest.mark.parametrize("name", UNCLOSED)
def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path, name):
    with pytest.raises(InputError, match=r"a.csv: a quote in line [34] or after it should be closed"):
        rows(tmp_path, "a.csv", UNCLOSED[name])
    assert len(rows(tmp_path, "b.csv", 'text,label\n"a\nb ""c""",d\n5" e,"f\n"\n"yes" ,g\n')) == 3


def test_shards_that_number_their_classes_otherwise(tmp_path):
    """`datasets` takes the first one's names for all, so that a good text became a bad one."""
    import datasets

    for i, names in enumerate((["no", "yes"], ["yes", "no"])):
        features = datasets.Features({"label": datasets.ClassLabel(names=names)})
        datasets.Dataset.from_dict({"label": [0]}, features=features).to_parquet(tmp_path / f"train-{i}.parquet")
    with pytest.raises(InputError, match="train-1.parquet: label has the classes yes, no; in train-0.parquet no, yes"):
        read(Data(path=str(tmp_path)))["train"]


LATE = {
    "a column that comes late": ({"text": "a"}, {"text": "b", "note": "c"}, ["text", "note"]),
    "a date, later a word": ({"text": "2020-01-01 00:00:00"}, {"text": "unknown"}, ["text"]),
    "numbers, later text": ({"text": 1}, {"text": "D-1"}, ["text"]),
}


def test_a_line_that_is_no_object(tmp_path):
    content = json.dumps({"text": 1, "more": "x" * 1000}) + "\n"
    with pytest.raises(InputError, match="a.jsonl: not readable as json"):
        rows(tmp_path, "a.jsonl", content * 11_000 + '{"text": "D", "more": ""}\n"D"\n')


@pytest.mark.parametrize("name", LATE)
def test_large_json_is_read_as_small(tmp_path, name):
    """Its reader takes types from the first ten megabytes."""
    first, last, columns = LATE[name]
    content = json.dumps(first | {"more": "x" * 1000}) + "\n"
    found = rows(tmp_path, "a.jsonl", content * 11_000 + json.dumps(last | {"more": ""}) + "\n")
    assert len(found) == 11_001 and set(found[0]) == {*columns, "more"}
    assert found[-1]["text"] == last["text"] and found[0]["text"] == str(first["text"])


def test_a_word_after_many_rows_of_digits(tmp_path):
    numbers = [str(i) for i in range(20_000)]
    found = rows(tmp_path, "a.csv", "text,label\n" + "".join(f"{i},0\n" for i in numbers) + "word,1\n")
    assert [row["text"] for row in found] == [*numbers, "word"]


# file, content, options, rows
AS_WRITTEN = {
    "a lone quote in TSV": ("a.tsv", 'a\tb\n1\tsay "hi\n2\tyou\n', {}, [("1", 'say "hi'), ("2", "you")]),
    "quoted TSV": ("a.tsv", 'a\tb\n"1"\t"x ""y"""\n', {}, [('"1"', '"x ""y"""')]),
    "a lone quote with bars": ("a.csv", 'a|b\n1|say "hi\n2|x\n', {"delimiter": "|"}, [("1", 'say "hi'), ("2", "x")]),
    "quoted CSV": ("a.csv", 'a,b\n"1,5","x ""y""\nz"\n', {}, [("1,5", 'x "y"\nz')]),
    "semicolons": ("a.csv", "a;b\n1,5;x\n", {"delimiter": ";"}, [("1,5", "x")]),
    "a tab in CSV": ("a.csv", "a\tb\n1\tx\n", {"delimiter": "tab"}, [("1", "x")]),
    "a table called txt": ("a.txt", "a\tb\n1\tx\n", {"delimiter": "\\t"}, [("1", "x")]),
    "blanks around names": ("a.csv", " a , b\n1, x\n", {}, [("1", " x")]),
    "a BOM": ("a.csv", b"\xef\xbb\xbfa,b\n1,x\n", {}, [("1", "x")]),
    "a BOM before a quote": ("a.csv", b'\xef\xbb\xbf"a","b"\n1,x\n', {}, [("1", "x")]),
    "Windows' line ends": ("a.csv", "a,b\r\n1,x\r\n", {}, [("1", "x")]),
    "old Mac's line ends": ("a.csv", "a,b\r1,x\r", {}, [("1", "x")]),
    "no last line end": ("a.csv", "a,b\n1,x", {}, [("1", "x")]),
    "blank lines": ("a.csv", "\na,b\n\n1,x\n\n", {}, [("1", "x")]),
    "no header": ("a.csv", "1,x\n2,y\n", {"header": ["a", "b"]}, [("1", "x"), ("2", "y")]),
    "other line ends in a field": ("a.tsv", "a\tb\n1\tx\u2028y\x85z\x0b\n", {}, [("1", "x\u2028y\x85z\x0b")]),
    "in capitals": ("A.CSV", "a,b\n1,x\n", {}, [("1", "x")]),
    "packed": ("a.csv.gz", gzip.compress(b"a,b\n1,x\n"), {}, [("1", "x")]),
    "only a header": ("a.csv", "a,b\n", {}, []),
}


@pytest.fixture(params=["held", "kept"])
def size(request, monkeypatch):
    """Every table counts as small, or as large."""
    if request.param == "kept":
        monkeypatch.setattr("d2v.data.tables.LARGE", -1)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("case", AS_WRITTEN)
def test_tables_as_written(tmp_path, case):
    name, content, options, expected = AS_WRITTEN[case]
    assert rows(tmp_path, name, content, **options) == [dict(zip("ab", row, strict=True)) for row in expected]


def test_options_of_csv_that_a_file_does_not_follow_are_said(tmp_path):
    for name, content, delimiter in (("a.jsonl", '{"a": "x"}\n', ";"), ("a.txt", "x\n", None)):
        (tmp_path / name).write_text(content)
        remarks = []
        read_table([tmp_path / name], Data(header=["b"], delimiter=delimiter), remarks)
        options = "data.delimiter, data.header" if delimiter else "data.header"
        assert [line for _, line, _ in remarks] == [
            f"{name}: {options} without effect, since it is {'json' if delimiter else 'text'}"
        ]


def test_an_unnamed_column_and_one_alone(tmp_path):
    assert rows(tmp_path, "a.csv", ",b\n0,x\n") == [{"column 0": "0", "b": "x"}]
    assert rows(tmp_path, "b.csv", "text\na\n\nb\n") == [{"text": "a"}, {"text": ""}, {"text": "b"}]


JSON = {
    "dates stay text": ("a.jsonl", '{"text": "2020-01-01", "n": 1}\n', [{"text": "2020-01-01", "n": 1}]),
    "dates in lists": ("a.json", '[{"w": ["2020-01-01T00:00:00Z"]}]', [{"w": ["2020-01-01T00:00:00Z"]}]),
    "digits stay text": ("a.jsonl", '{"id": "007", "n": 7}\n', [{"id": "007", "n": 7}]),
    "a BOM": ("a.jsonl", b'\xef\xbb\xbf{"a": "x"}\n', [{"a": "x"}]),
    "a BOM and dates": ("a.json", b'\xef\xbb\xbf[{"a": "2020-01-01"}]', [{"a": "2020-01-01"}]),
    "null and True as text": ("a.jsonl", '{"a": "null"}\n{"a": "True"}\n', [{"a": "null"}, {"a": "True"}]),
    "packed": ("a.jsonl.gz", gzip.compress(b'{"a": "x"}\n'), [{"a": "x"}]),
    "text with a BOM": ("a.txt", b"\xef\xbb\xbfx\r\n\ny", [{"text": "x"}, {"text": ""}, {"text": "y"}]),
}


@pytest.mark.parametrize("case", JSON)
def test_json_keeps_its_types(tmp_path, case):
    name, content, expected = JSON[case]
    assert rows(tmp_path, name, content) == expected


REFUSED = {
    "semicolons": ("a.csv", "a;b\n1;x\n", r"a.csv: has one column, 'a;b'; --data.delimiter ';' makes several"),
    "tabs": ("a.csv", "a\tb\n1\tx\n", r"has one column, .*--data.delimiter '\\t'"),
    "too many fields": (
        "a.csv",
        "a,b\n1,x\n1,x,y\n2\n",
        r"line 3 \('1,x,y'\) has 3 fields, there are 2 columns, should be as many; 2 ",
    ),
    "two names alike": ("a.csv", "a,a \n1,x\n", "has two columns 'a'"),
    "nothing": ("a.csv", "", "a.csv: is empty"),
    "not UTF-8": (
        "a.csv",
        "a,b\n1,é\n".encode("cp1252"),
        r"a.csv: not a table of text in UTF-8 \(line 2 is not UTF-8: byte 0xe9",
    ),
    "UTF-16": ("a.csv", "a,b\n1,x\n".encode("utf-16"), r"a.csv: not a table of text in UTF-8"),
    "not UTF-8 in the header": ("a.csv", "é,b\n1,x\n".encode("cp1252"), r"a.csv: not a table of text in UTF-8"),
    "bad JSON": ("a.jsonl", '{"a": \n', r"a.jsonl: not readable as json"),
    "bad JSON, later": ("a.jsonl", '{"a": 1}\n\n{"a" 2}\n', r"line 3 \('{\"a\" 2}'\) is no JSON: Expecting ':'"),
    "commas between lines": ("a.jsonl", '{"a": 1},\n{"a": 2}\n', r"line 1 \(.*\) is no JSON, no comma behind it"),
    "a list that was cut": ("a.json", '[{"a": 1},\n{"a": ', r"Expecting value: line 2 column 7"),
    "JSON not in UTF-8": ("a.jsonl", '{"a": 1}\n{"a": "é"}\n'.encode("cp1252"), r"line 2 is not UTF-8: byte 0xe9"),
    "bad text": ("a.txt", b"a\n\xff\xfea", r"a.txt: not readable as text \(line 2 is not UTF-8: byte 0xff"),
}


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_is_named(tmp_path, case):
    name, content, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        rows(tmp_path, name, content)


def test_a_large_table_is_mapped_and_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("d2v.data.tables.LARGE", 100)
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,x\n" * 100 + "2\n")
    data = Data(path=str(path), bad_rows="skip")
    first, opened = read(data), []
    with monkeypatch.context() as patch:
        patch.setattr("d2v.data.tables.open_csv", lambda *args: opened.append(args))
        again = read(data)
    assert not opened and again.remarks == first.remarks and "one such row left out" in again.remarks[0][1]
    assert first["train"].cache_files and first["train"]._fingerprint == again["train"]._fingerprint
    assert len(pickle.dumps(again["train"])) < 5000 and again["train"].to_list() == 100 * [{"a": "1", "b": "x"}]
    path.write_text("a,b\n" + "3,y\n" * 100)
    assert read(data)["train"]["a"][:] == 100 * ["3"]


WRAPPED = {
    "beside a version": '{"version": "1, [2]", "n": 3, "data": [{"a": "2020-01-01"}, {"a": "y"}]}',
    "over lines": '{\n "rows": [\n  {"a": "2020-01-01"},\n  {"a": "y"}\n ],\n "info": {"by": ["me"]}}',
    "of lines that look like it": '{"id": 0, "data": [{"a": 1}], "a": "2020-01-01"}\n{"a": "y"}\n',
}


@pytest.mark.parametrize("name", WRAPPED)
def test_json_with_its_rows_in_a_list(tmp_path, name):
    (tmp_path / "a.json").write_text(WRAPPED[name])
    found = read_table([tmp_path / "a.json"], Data(), [])
    assert found["a"][:] == ["2020-01-01", "y"] and first_rows(tmp_path / "a.json", Data())[1]["a"] == "y"
    assert len(found.column_names) == (3 if "lines that" in name else 1)


def test_files_with_dates_are_joined_where_one_has_whole_numbers(tmp_path):
    for i, number in enumerate(("1.5", "1")):
        (tmp_path / f"train-{i}.jsonl").write_text(f'{{"day": "2020-01-01", "n": {number}}}\n')
    assert read(Data(path=str(tmp_path)))["train"]["n"][:] == [1.5, 1.0]


@pytest.mark.usefixtures("size")
def test_a_header_that_comes_again_is_no_row(tmp_path):
    """As of files that were written one behind another, or of `data.header` for a file that has one."""
    (tmp_path / "a.csv").write_text("text,label\nx,pos\ntext,label\ny,neg\ntext,label\n")
    with pytest.raises(InputError, match=r"a.csv: row 1 has the columns' names for values; 2 such rows \(data.del"):
        read(Data(path=str(tmp_path / "a.csv")))["train"]
    source = read(Data(path=str(tmp_path / "a.csv"), bad_rows="skip"))
    assert source["train"]["label"][:] == ["pos", "neg"] and source.remarks[0][2]["rows"] == 2
    with pytest.raises(InputError, match="row 0 has the columns' names for values; 3 such rows"):
        read(Data(path=str(tmp_path / "a.csv"), header=["text", "label"]))["train"]
    (tmp_path / "a.csv").write_text("text\nx\ntext\n")  # a word like others
    assert read(Data(path=str(tmp_path / "a.csv")))["train"]["text"][:] == ["x", "text"]


@pytest.mark.usefixtures("size")
def test_rows_of_another_width_are_left_out_if_asked(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,x\n1,x,y\n2,z\n3\n")
    source = read(Data(path=str(tmp_path / "a.csv"), bad_rows="skip"))
    assert source["train"]["a"][:] == ["1", "2"]
    ((fact, line, values),) = source.remarks
    assert fact == "rows left out" and values["rows"] == 2 and "2 such rows left out; the first is line 3" in line


@pytest.mark.parametrize("delimiter", ["", ";;", "::"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(InputError, match="data.delimiter should be one character"):
        Data(delimiter=delimiter)


def test_json_by_column_as_pandas_writes_it(tmp_path):
    (tmp_path / "a.json").write_text('{"text": {"0": "007", "1": "b"},\n "label": {"0": 1, "1": null}}')
    rows = read_table([tmp_path / "a.json"], Data(), [])
    assert rows["text"][:] == ["007", "b"] and rows["label"][:] == [1, None]
    assert first_rows(tmp_path / "a.json", Data()) == [{"text": "007", "label": 1}, {"text": "b", "label": None}]
    (tmp_path / "b.json").write_text('{"text": {"0": "a", "1": "b"}, "label": {"0": 1}}')
    with pytest.raises(InputError, match=r"b.json: not readable as json \(an object a line"):
        read_table([tmp_path / "b.json"], Data(), [])
    lines = '{"a": {"0": 1}, "b": "x"}\n{"a": {"0": 2}, "b": "y"}\n'
    (tmp_path / "c.jsonl").write_text(lines)
    assert read_table([tmp_path / "c.jsonl"], Data(), [])["b"][:] == ["x", "y"]


@pytest.mark.usefixtures("size")
def test_quotes_that_stay_in_their_fields_are_said(tmp_path):
    """Behind a blank, or where fields are not quoted."""
    cases = {
        "a.csv": (
            'text,label\na, "b"\n"c",d\ne, "f"\n',
            "2 fields of label have a blank before the quote",
            [' "b"', "d"],
        ),
        "a.tsv": ('text\tlabel\nx\ty\n"a ""b"""\tc\n', "1 fields of text are in quotes.* that of row 1", ["y", "c"]),
    }
    for name, (content, said, labels) in cases.items():
        (tmp_path / name).write_text(content)
        source = read(Data(path=str(tmp_path / name)))
        assert source["train"]["label"][:2] == labels
        assert [bool(re.search(said, line)) for _, line, _ in source.remarks] == [True]
    assert rows(tmp_path, "b.tsv", 'text\tlabel\nsaid "a"\tb\n')[0] == {"text": 'said "a"', "label": "b"}


def test_quotes_with_a_backslash_are_refused(tmp_path):
    """Spark's writer has them by default, and MySQL's; a backslash that ends a field, or before two quotes, is one."""
    with pytest.raises(InputError, match=r'a.csv, line 3: has \\" within a field, and 0 other lines have'):
        rows(tmp_path, "a.csv", 'text,label\na,b\n"He said \\"hi\\" to me",pos\n')
    assert rows(tmp_path, "b.csv", 'text,label\n"C:\\",a\n"f(\\""x\\"")",b\n') == [
        {"text": "C:\\", "label": "a"},
        {"text": 'f(\\"x\\")', "label": "b"},
    ]
