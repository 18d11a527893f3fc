"""Files of tables: CSV and TSV as text, JSON with the types it has, parquet, lines of text."""

import csv
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2v.config import Data
from d2v.data.cache import FORMAT, cache_folder, states
from d2v.data.files import open_binary
from d2v.data.quotes import check_escapes, check_quotes, count_quoted
from d2v.errors import InputError
from d2v.hub import in_place_of, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".json": "json", ".jsonl": "json"}
TABLES |= {".ndjson": "json", ".txt": "text"}
"""What files of these endings are, with `.gz` behind it too."""
Remark = tuple[str, str, dict[str, Any]]
"""A fact that is worth noting, its line and its values, see `d2v.data.facts.note`."""
LARGE = 1 << 26
"""Bytes of CSV files above which their rows are not held in memory."""
SAMPLE = 20
"""Rows that say where the files are that a table names."""


def ending(path: os.PathLike | str) -> str:
    """The ending that says what a file is, in small letters: `.csv` of `rows.CSV.gz`."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def read_table(files: Sequence[Path], data: Data, remarks: list[Remark]) -> "Dataset":
    """The rows of one or more files of the same kind.

    Args:
        files: of a split.
        data: has `delimiter`, `header` and `bad_rows`.
        remarks: gets what is worth saying.

    Raises:
        InputError: a file cannot be read, with its line where that is known.
    """
    import datasets

    kind = TABLES[ending(files[0])]
    if not any(file.stat().st_size for file in files if file.is_file()):
        raise InputError(f"{files[0]}: is empty" if files[0].is_file() else f"{files[0]}: no such file")
    try:
        if kind == "csv" or (kind == "text" and data.delimiter):
            large = sum(file.stat().st_size for file in files) > LARGE
            return joined([(kept_rows if large else whole_rows)(file, data, remarks) for file in files], files)
        if unused := ", ".join(f"data.{name}" for name in ("delimiter", "header") if getattr(data, name)):
            what = f"{files[0].name}: {unused} without effect, since it is {kind}"
            remarks.append(("option", what, {"option": unused, "file": files[0].name}))
        if kind == "json" and any(map(one_object, files)):
            return joined(list(map(read_json_rows, files)), files)
        if kind == "parquet":
            check_same_classes(files)
        names = [str(file) for file in files]
        options = {"encoding": "utf-8-sig"} if kind == "text" else {}
        try:
            table = datasets.load_dataset(kind, data_files={"train": names}, split="train", **options)
        except datasets.exceptions.DatasetGenerationError as error:
            if kind != "json" or isinstance(error.__cause__, OSError):
                raise
            return joined(list(map(read_json_rows, files)), files)  # other columns than the first block's, or a fault
        if kind == "json":
            table.data.validate(full=True)  # whose reader does not look at what strings are made of
            if dated(table.features):
                return joined(list(map(read_json_rows, files)), files)
        return table
    except InputError:
        raise
    except (
        OSError,
        EOFError,
        StopIteration,
        ValueError,
        zlib.error,
        datasets.exceptions.DatasetGenerationError,
    ) as error:
        file, why = next(
            ((file, why) for file in files if (why := kind != "parquet" and undecoded(file))), (files[0], reason(error))
        )
        raise InputError(f"{file}: not readable as {kind} ({why})") from error


def named_classes(features: Any) -> dict[str, list[str]]:
    """The names of the classes of each column that has numbered ones; none where features are not known."""
    from datasets import ClassLabel

    return {name: kind.names for name, kind in (features or {}).items() if isinstance(kind, ClassLabel)}


def check_same_classes(files: Sequence[Path]) -> None:
    """Raise InputError unless all parquet files of a split number their classes alike: the first one's names count."""
    from datasets import Features
    from pyarrow import ArrowInvalid, parquet

    first: dict[str, list[str]] = {}
    for file in files if len(files) > 1 else ():
        try:
            schema = parquet.read_schema(file)
        except (OSError, ArrowInvalid):
            continue  # a damaged one is named where it is read
        if b"ClassLabel" not in (schema.metadata or {}).get(b"huggingface", b""):
            if file == files[0]:
                return
            continue
        for column, names in named_classes(Features.from_arrow_schema(schema)).items():
            if first.setdefault(column, names) != names:
                others = f"{column} has the classes {', '.join(names)}; in {files[0].name} {', '.join(first[column])}"
                raise InputError(f"{file}: {others:.300}; files of a split should number them alike")


def whole_rows(file: Path, data: Data, remarks: list[Remark]) -> Any:
    """A pyarrow table of a CSV file's rows that have a field for each column; `data.bad_rows` is for others."""
    import pyarrow as pa

    bad: list[str] = []
    quoted: dict[str, list[int]] = {}
    schema, batches = open_csv(file, data, bad, quoted)
    table = pa.Table.from_batches(batches, schema)
    remarks += ragged_rows(file, data, bad) + kept_quotes(file, data, quoted)
    return table


def kept_rows(file: Path, data: Data, remarks: list[Remark]) -> "Dataset":
    """The same rows of a file in the cache that is mapped into memory: all processes share it, and the next start."""
    import datasets
    import pyarrow as pa
    from filelock import FileLock

    state = repr((FORMAT, str(file.resolve()), states([str(file)]), data.delimiter, data.header))
    place = cache_folder() / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.rows"
    with FileLock(f"{place}.lock"):
        if not place.is_file():
            bad: list[str] = []
            quoted: dict[str, list[int]] = {}
            schema, batches = open_csv(file, data, bad, quoted)
            with in_place_of(place) as beside, pa.ipc.new_stream(str(beside), schema) as stream:
                for batch in batches:
                    stream.write_batch(batch)
                write_json(place.with_suffix(".json"), {"bad": bad, "quoted": quoted})
    found = read_json(place.with_suffix(".json"))
    remarks += ragged_rows(file, data, found["bad"]) + kept_quotes(file, data, found["quoted"])
    return datasets.Dataset.from_file(str(place))


def ragged_rows(file: Path, data: Data, bad: Sequence[str]) -> list[Remark]:
    """What is said of rows that have other than a field for each column; InputError where they are refused."""
    if bad:
        count = f"{len(bad)} such rows" if len(bad) > 1 else "one such row"
        if data.bad_rows == "refuse":
            advice = "(data.delimiter, data.header; --data.bad_rows skip leaves such rows out)"
            raise InputError(f"{file}: {bad[0]}; {count} {advice}")
        line = f"{file}: {count} left out; the first is {bad[0]}"
        return [("rows left out", line, {"file": str(file), "rows": len(bad), "first": bad[0]})]
    return []


def kept_quotes(file: Path, data: Data, found: Mapping[str, Sequence[int]]) -> list[Remark]:
    """What is said of fields that keep their quotes, see `count_quoted`, once for each column."""
    why = "have a blank before the quote" if delimiter_of(file, data) in ",;" else "are in quotes"
    return [
        (
            "quotes kept",
            f"{file}: {rows} fields of {name} {why}, which stays in them; the first is that of row {first}",
            {"file": str(file), "column": name, "rows": rows},
        )
        for name, (rows, first) in found.items()
    ]


def delimiter_of(file: Path, data: Data) -> str:
    """What separates the fields of a CSV or TSV file."""
    return data.delimiter or ("," if ending(file) == ".csv" else "\t")


def reason(error: BaseException) -> str:
    """What `datasets` or pyarrow say, on one line; the cause, such as a byte that is not UTF-8, where there is one."""
    return re.sub(r"\s+", " ", str(error.__cause__ or error))


def joined(tables: list[Any], files: Sequence[Path]) -> "Dataset":
    """The rows of files of the same columns, which are pyarrow tables or, mapped into memory, data sets."""
    import datasets
    import pyarrow as pa

    for table, file in zip(tables, files, strict=True):
        if table.column_names != tables[0].column_names:
            columns = f"{', '.join(table.column_names)}; {files[0].name} has {', '.join(tables[0].column_names)}"
            raise InputError(f"{file}: has the columns {columns}; files of a split should have the same")
    if isinstance(tables[0], datasets.Dataset):
        return datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]
    whole = pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
    return datasets.Dataset(whole, fingerprint=datasets.fingerprint.generate_random_fingerprint())


def open_csv(
    file: Path, data: Data, bad: list[str], quoted_in: dict[str, list[int]], block: int = 1 << 24
) -> tuple[Any, Iterator[Any]]:
    """The pyarrow schema of a CSV file, whose columns are all text, an empty field the empty text, and its batches.

    Fields are quoted by `"` where the delimiter is a comma or semicolon; after tabs and bars a `"` is a character.

    Args:
        file: CSV or TSV, of which the first line names the columns unless `data.header` does.
        data: has `delimiter` and `header`.
        bad: gets what is wrong with rows left out.
        quoted_in: gets what `count_quoted` counts.
        block: bytes of a batch.

    Raises:
        InputError: it is not text in UTF-8, or its header cannot be used.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow

    delimiter = delimiter_of(file, data)
    quoted = delimiter in ",;"
    names, skip = (data.header, 0) if data.header else read_header(file, delimiter, quoted=quoted, data=data)
    schema = pa.schema([(name, pa.string()) for name in names])

    def ragged(row: Any) -> str:
        fields = f"{row.actual_columns} fields, there are {row.expected_columns} columns, should be as many"
        bad.append(f"line {row.number} ({row.text[:40]!r}) has {fields}")
        return "skip"

    def without_names(batch: Any, before: int) -> Any:
        """The rows but for those that are the columns' names again, as where files were written one behind another."""
        again = reduce(pc.and_, [pc.equal(batch[name], name) for name in names])
        if not pc.any(again).as_py():
            return batch
        first = before + again.index(True).as_py()
        bad.extend([f"row {first} has the columns' names for values"] * again.true_count)
        return batch.filter(pc.invert(again))

    parse = arrow.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quoted else False,
        newlines_in_values=quoted,
        ignore_empty_lines=len(names) > 1,
        invalid_row_handler=ragged,
    )
    convert = arrow.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, quoted_strings_can_be_null=False
    )
    read = arrow.ReadOptions(column_names=names, skip_rows=skip, block_size=block, use_threads=False)

    def batches() -> Iterator[Any]:
        several, escaped, count = False, False, 0
        try:
            with open_binary(file) as stream:
                for batch in arrow.open_csv(stream, read, parse, convert):
                    several = several or any(pc.any(pc.match_substring(each, "\n")).as_py() for each in batch)
                    escaped = escaped or (
                        quoted and any(pc.any(pc.match_substring(each, '\\"')).as_py() for each in batch)
                    )
                    count_quoted(batch, delimiter, count, quoted_in)
                    yield without_names(batch, count) if len(names) > 1 else batch
                    count += len(batch)
            if several:
                check_quotes(file, delimiter)
            if escaped:
                check_escapes(file)
        except (pa.ArrowInvalid, EOFError, zlib.error) as error:
            if "Empty CSV file" not in str(error):
                raise InputError(
                    f"{file}: not a table of text in UTF-8 ({undecoded(file) or reason(error)})"
                ) from error

    return schema, batches()


def undecoded(file: Path) -> str | None:
    """The first line that is not UTF-8, for a message; None if there is none."""
    with suppress(OSError, EOFError, zlib.error), open_binary(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8: byte 0x{line[error.start]:02x}"
    return None


def read_header(file: Path, delimiter: str, *, quoted: bool, data: Data) -> tuple[list[str], int]:
    """The names of a file's columns, without white space around them, and how many lines they take."""
    with open_binary(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
        try:
            names = [name.strip() for name in next((line for line in lines if line), [])]
        except (EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
            raise InputError(f"{file}: not a table of text in UTF-8 ({undecoded(file) or error})") from error
    if not names:
        raise InputError(f"{file}: is empty")
    if len(names) == 1 and data.delimiter is None:
        for other in ";\t|,":
            if other in names[0]:
                raise InputError(f"{file}: has one column, {names[0]!r:.80}; --data.delimiter {other!r} makes several")
    names = [name or f"column {i}" for i, name in enumerate(names)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{file}: has two columns {twice[0]!r}; names should differ (data.header)")
    return names, lines.line_num


def read_sample(path: Path) -> tuple[list[str], list[dict[str, str]], str]:
    """The columns, rows and delimiter of a competition's sample submission, all values as text.

    Raises:
        InputError: it cannot be read, has no ids or predictions, or a row has more or fewer fields than others.
    """
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            header = re.sub('"[^"]*"', "", file.readline())
            delimiter = max(",;\t", key=header.count)
            file.seek(0)
            lines = csv.reader(file, delimiter=delimiter)
            columns: list[str] = next(lines, [])
            rows = [(lines.line_num, line) for line in lines if line]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file that can be read ({error}); see data.submission") from error
    if len(columns) < 2 or not rows:
        raise InputError(f"{path}: should have a column of ids, one or more of predictions, and rows")
    if len({*columns}) < len(columns):
        raise InputError(f"{path}: two of its columns have the same name; there are {', '.join(columns)}")
    if ragged := [number for number, line in rows if len(line) != len(columns)]:
        raise InputError(f"{path}, line {ragged[0]}: should have {len(columns)} fields, as its first line has")
    return columns, [dict(zip(columns, line, strict=True)) for _, line in rows], delimiter


def read_json_rows(file: Path) -> Any:
    """A pyarrow table of a JSON file, an object a line or a list of objects, in which dates stay text."""
    import pyarrow as pa

    try:
        with open_binary(file) as stream, io.TextIOWrapper(stream, "utf-8-sig") as text:
            whole = None
            listed = text.read(1000).lstrip().startswith("[")
            if listed or one_object(file):
                text.seek(0)
                try:
                    whole = json.load(text)
                except json.JSONDecodeError:
                    if listed:
                        raise  # else an object a line, of which the first looks like the whole
            text.seek(0)
            rows = list(objects(text)) if whole is None else whole
        if isinstance(rows, list) and (odd := [row for row in rows if not isinstance(row, dict)]):
            raise ValueError(f"there is {odd[0]!r:.40} among them")
        if isinstance(whole, dict) and (inside := [whole[key] for key in WRAPPERS if isinstance(whole.get(key), list)]):
            rows = inside[0]
        elif isinstance(whole, dict):  # pandas' default: of each column the values by row
            values = [whole[name].values() for name in whole]
            rows = [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: one_type([row.get(name) for row in rows]) for name in names})
    except (ValueError, AttributeError, pa.ArrowException) as error:
        why = f"an object a line, or a list of objects of the same kind; {reason(error)}"
        raise InputError(f"{file}: not readable as json ({why})") from error


def objects(lines: Iterable[str]) -> Iterator[Any]:
    """What the lines of JSON say, blank ones left out; ValueError, with its number, for one that is not JSON."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                comma = ", no comma behind it" if line.rstrip().endswith(",") else ""
                raise ValueError(f"line {number} ({line.strip()[:40]!r}) is no JSON{comma}: {error}") from None


def one_type(values: list[Any]) -> Any:
    """A pyarrow array of a column; what has numbers and texts is text."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        if any(isinstance(value, dict | list) for value in values):
            raise
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])


WRAPPERS = ("data", "rows", "examples", "samples", "items", "records", "instances")
"""What the list of rows is called in JSON that is one object, beside numbers and texts such as its version."""
PLAIN = r'"[^"]*"\s*:\s*("[^"]*"|[^"\s{}\[\],]+)\s*,\s*'
ONE_OBJECT = re.compile(
    r'(\ufeff)?\s*\{\s*("[^"]*"\s*:\s*\{\s*"\d+"\s*:|' + f'({PLAIN})*"({"|".join(WRAPPERS)})"' + r"\s*:\s*\[\s*\{)"
)


def one_object(file: Path) -> bool:
    """Whether a JSON file begins as one object that holds all rows: by column as pandas writes tables, or as a list."""
    with open_binary(file) as stream:
        return bool(ONE_OBJECT.match(stream.read(1000).decode("utf-8", "replace")))


def dated(feature: Any) -> bool:
    """Whether a feature has dates or times, as which pyarrow takes text that looks like them."""
    if isinstance(feature, dict):
        return any(map(dated, feature.values()))
    inner = getattr(feature, "feature", None)
    if inner is not None or isinstance(feature, list):
        return dated(inner if inner is not None else feature[0])
    return str(getattr(feature, "dtype", "")).startswith(("timestamp", "date", "time", "duration"))


def first_rows(file: Path, data: Data) -> list[dict[str, Any]]:
    """The first rows of a table, to see what its columns are; none if it cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    kind = TABLES[ending(file)]
    try:
        if kind == "csv":
            first = next(open_csv(file, data, [], {}, block=1 << 20)[1], pa.RecordBatch.from_pylist([]))
            return first.slice(0, SAMPLE).to_pylist()
        if kind == "parquet":
            with parquet.ParquetFile(file) as source:
                small = [field.name for field in source.schema_arrow if not pa.types.is_nested(field.type)]
                rows = next(source.iter_batches(SAMPLE, columns=small), pa.RecordBatch.from_pylist([])).to_pylist()
                return [dict.fromkeys(source.schema_arrow.names) | row for row in rows]
        if kind == "json":
            with open_binary(file) as stream, io.TextIOWrapper(stream, "utf-8-sig") as text:
                head = text.read(1000).lstrip()
                if head.startswith("[") or re.match(r"\{\s*\n", head) or one_object(file):
                    return read_json_rows(file).slice(0, SAMPLE).to_pylist()
                text.seek(0)
                lines = islice((line for line in text if line.strip()), SAMPLE)
                return [row for line in lines if isinstance(row := json.loads(line), dict)]
    except (InputError, OSError, EOFError, TypeError, ValueError, zlib.error, pa.ArrowException):
        pass
    return []
