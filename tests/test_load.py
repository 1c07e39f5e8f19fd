"""Real data, loaded as it is found: kinds of files, columns, types of fields, parts, and a run on what was loaded."""

from __future__ import annotations

import asyncio
import bz2
import csv
import datetime
import decimal
import gzip
import json
import lzma
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import dspy
import pytest
from e2e_support import ToyEngine, number, toy_lm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes_support import Forked

from cuesmith import Budget, SimulatedOptimizer, compile
from cuesmith.programs.evaluation import evaluate
from cuesmith.programs.tasks import (
    Choice,
    ExactMatch,
    InOrder,
    JsonFields,
    Near,
    Number,
    SetF1,
    Sizes,
    Task,
    TaskError,
    TokenF1,
    load,
    load_csv,
    reading,
)
from cuesmith.teleprompters.runtime.fingerprint import fingerprint
from cuesmith.teleprompters.runtime.metric import Judged, Metric
from cuesmith.teleprompters.runtime.preflight import check_gold, check_inputs

SHARED = next((p for each in Path(__file__).parents if (p := each / "shared" / "data").is_dir()), None)
N = 30
Rows = Sequence[Mapping[str, object]]
NAMES = st.sampled_from(
    ["question", "text", "answer", "label", "choices", "messages", "role", "content", "a b", "class"]
)


def pairs(n: int = N, prefix: str = "q") -> list[dict[str, object]]:
    return [{"question": f"{prefix}{k}?", "answer": f"the answer {k}"} for k in range(n)]


def classified(n: int = N, **more: object) -> list[dict[str, object]]:
    return [{"text": f"text number {k}.", "label": ("good", "bad", "so-so")[k % 3], **more} for k in range(n)]


def write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        assert isinstance(data, list)
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
    else:
        path.write_text(json.dumps(data, indent=1))
    return path


def write_table(path: Path, rows: Rows, delimiter: str = ",", *, header: bool = True, encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        if header:
            writer.writeheader()
        writer.writerows(rows)
    return path


def kinds(task: Task) -> dict[str, Any]:
    return {name: info.annotation for name, info in dspy.ensure_signature(task.signature).fields.items()}


def everything(task: Task) -> list[dspy.Example]:
    return [*task.train, *task.validation, *task.test]


def refused(path: Path, **told: Any) -> str:
    with pytest.raises(TaskError) as caught:
        load(path, **told)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(task: Task) -> None:
    """Check what cuesmith checks before a run, and that the right answers of all examples get the full score."""
    program = dspy.ChainOfThought(task.signature)
    sets = {"trainset": task.train, "valset": task.validation, "test": task.test}
    assert check_inputs(program, **sets) == ()
    assert asyncio.run(check_gold(Metric(task.metric), task.train, program, 1.0, task.validation)) == ()
    for example in everything(task):
        assert Metric(task.metric).call(example, dspy.Prediction(**example.labels()))[0] == 1.0
    contents = [{fingerprint(example.inputs().toDict()) for example in split} for split in sets.values()]
    assert len(set.union(*contents)) == sum(map(len, contents)) == len(everything(task))


# --- kinds of files ---


COLUMNS = {name: [row[name] for row in pairs()] for name in ("question", "answer")}
JSONS: dict[str, object] = {
    "records": pairs(),
    "under a usual key": {"version": 1, "data": pairs()},
    "under the only key": {"about": "x", "my rows": pairs()},
    "by number": {"metadata": {"n": N}, "examples": {str(k): row for k, row in enumerate(pairs(), 1)}},
    "by name": {f"id-{k}": row for k, row in enumerate(pairs())},
    "columns": COLUMNS,
    "columns as pandas writes them": {n: {str(k): v for k, v in enumerate(c)} for n, c in COLUMNS.items()},
    "rows of a hub": {"features": [{"name": "x"}], "rows": [{"row_idx": k, "row": r} for k, r in enumerate(pairs())]},
    "lists": [list(row.values()) for row in pairs()],
    "bbh": {"canary": "x", "examples": [{"input": r["question"], "target": r["answer"]} for r in pairs()]},
}


@pytest.mark.parametrize("form", JSONS)
def test_json_in_its_usual_forms(tmp_path: Path, form: str) -> None:
    for name in ("data.json", "data.txt"):  # the content decides
        task = load(write(tmp_path / name, JSONS[form]))
        output = "column_2" if form == "lists" else "answer"
        assert task.signature == ("column_1" if form == "lists" else "question") + f" -> {output}"
        assert sorted(e[output] for e in everything(task)) == sorted(str(row["answer"]) for row in pairs())
        check(task)


def test_json_lines_under_any_name(tmp_path: Path) -> None:
    text = "\n\n".join(json.dumps(row) for row in pairs()) + "\n\n \n"
    for name in ("data.jsonl", "data.ndjson", "data.json", "data.txt", "data"):
        path = tmp_path / name
        path.write_text(f"\ufeff{text}")
        assert len(everything(load(path))) == N
    write(path := tmp_path / "list.jsonl", []).write_text(json.dumps(pairs()))
    assert len(everything(load(path))) == N


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t", "^", ":", "~"])
def test_any_delimiter(tmp_path: Path, delimiter: str) -> None:
    rows = [{"text": f'it, "was" {k}; | see\nbelow', "label": ("a b", "c d")[k % 2]} for k in range(N)]
    for name in ("data.csv", "data.txt", "data.tsv"):
        task = load(write_table(tmp_path / name, rows, delimiter))
        assert {e.text for e in everything(task)} == {row["text"] for row in rows}
        assert kinds(task)["label"] == Literal["a b", "c d"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    rows = [{"text": f"żółw {k} 東京", "label": ("да", "нет")[k % 2]} for k in range(N)]
    task = load(write_table(tmp_path / "data.csv", rows, ";", encoding=encoding))
    assert kinds(task)["label"] == Literal["да", "нет"]
    assert all("東京" in e.text for e in everything(task))


def test_a_table_without_names_gets_some(tmp_path: Path) -> None:
    rows = [{"a": ("good", "bad")[k % 2], "b": f"It was the text number {k}."} for k in range(N)]
    task = load(write_table(tmp_path / "data.csv", rows, header=False))
    assert task.fields == "column_2 -> column_1: one of 2" and len(everything(task)) == N
    news = [{"a": 1 + k % 4, "b": f"Title {k}", "c": f"Story {k}"} for k in range(N)]
    path = write_table(tmp_path / "news.csv", news, header=False)
    assert load(path).fields == "column_2, column_3 -> column_1: one of 4"
    asked = [{"a": f"Which {k}?", "b": f"b{k}", "c": "x", "d": f"{k}", "e": "ABC"[k % 3]} for k in range(N)]
    task = load(write_table(tmp_path / "asked.csv", asked, header=False))
    assert (task.fields, task.metric) == ("column_1, options -> column_5", Choice("column_5"))
    check(task)
    both = [{"a": f"x{k % 2}", "b": k % 2, "c": f"Text number {k}"} for k in range(N)]
    told = refused(write_table(tmp_path / "both.csv", both, header=False))
    assert "columns are: column_1 (x0), column_2 (0), column_3 (Text number 0); say which, as in inputs=" in told


@pytest.mark.parametrize(
    ("names", "more", "fields"),
    [
        (("remark", "label"), ("An odd one", "label"), "remark -> label"),
        (("text", "label"), ("text", "label"), "text -> label"),
        (("text", "label"), ("label", "text"), "text -> label"),
        (("remark", "team"), ("An odd one", "team"), "remark -> team"),
        (("remark", "team"), ("remark", "team"), "remark -> team"),
    ],
)
def test_a_name_may_also_stand_among_the_data(
    tmp_path: Path, names: tuple[str, str], more: tuple[str, str], fields: str
) -> None:
    lines = [names, *((f"It was text {k}", ("x", "y")[k % 2]) for k in range(N)), more, ("An even one", "y")]
    rows = [{"a": a, "b": b} for a, b in lines]
    task = load(write_table(tmp_path / "data.csv", rows, header=False))
    assert task.fields.split(":")[0] == fields
    assert len(everything(task)) == N + 1 + (more != names)  # names once more are no row
    assert load_csv(tmp_path / "data.csv", inputs=names[:1], output=names[1]).fields == fields


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("question", "Fine"), ("statement", "It was text {}")),
        (("question", "Some short text"), ("statement", "It was text {}")),
        (("rare", "Some very short text"), ("statement", "It was text {}")),
        (("good", "Nice"), ("bad", "It was text {}")),
    ],
)
def test_a_first_line_of_data_has_no_names(tmp_path: Path, first: tuple[str, str], second: tuple[str, str]) -> None:
    lines = [first, *((((first, second)[k % 2])[0], second[1].format(k)) for k in range(N))]
    task = load(write_table(tmp_path / "data.csv", [{"a": a, "b": b} for a, b in lines], header=False))
    assert task.fields.startswith("column_2 -> column_1") and len(everything(task)) == N + 1


def test_tabs_without_quoting(tmp_path: Path) -> None:
    lines = [f'"Oh, {k}, he said\t{k % 2}' if k % 3 else f'a "{k}" b\t{k % 2}' for k in range(N)]
    (path := tmp_path / "data.tsv").write_text("sentence\tlabel\n" + "\n".join(lines))
    assert len(everything(load(path))) == N


def test_a_long_cell_is_no_mistake(tmp_path: Path) -> None:
    rows = [{"text": f"{k} " + "long " * 40_000, "label": "xy"[k % 2]} for k in range(N)]
    before = csv.field_size_limit()
    assert len(everything(load(write_table(tmp_path / "data.csv", rows)))) == N
    assert csv.field_size_limit() == before


def test_empty_lines_and_columns_without_names_are_read_over(tmp_path: Path) -> None:
    lines = [f"{k},t{k},{'ab'[k % 2]}," for k in range(N)]
    (path := tmp_path / "data.csv").write_text(",text,label,\n" + "\n,,,\n".join(lines) + "\n\n")
    task = load(path)
    assert task.fields == "text -> label: one of 2" and len(everything(task)) == N


def test_packed_files(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in pairs()).encode()
    for name, content in (("gz", gzip.compress(text)), ("bz2", bz2.compress(text)), ("xz", lzma.compress(text))):
        (tmp_path / f"data.jsonl.{name}").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "data.jsonl.zip", "w") as packed:
        packed.writestr("a/data.jsonl", text)
    for name in ("gz", "bz2", "xz", "zip"):
        task = load(tmp_path / f"data.jsonl.{name}")
        assert len(everything(task)) == N and task.signature == "question -> answer"


def test_western_text_is_read_and_told(tmp_path: Path) -> None:
    rows = [{**row, "text": f"Ein \u00fcbler Satz {k}"} for k, row in enumerate(classified())]
    path = write_table(tmp_path / "latin.csv", rows, encoding="latin-1")
    with pytest.warns(UserWarning, match="line 2: not UTF-8; read as Windows-1252"):
        task = load(path)
    assert all("\u00fc" in e.text for e in everything(task))
    for code in ("utf-16-le", "utf-16-be"):  # without a mark
        assert len(everything(load(write_table(tmp_path / "data.csv", rows, encoding=code)))) == N
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\xff")
    assert "not text" in refused(tmp_path / "picture.csv")


def test_a_folder_of_single_records(tmp_path: Path) -> None:
    for k in range(N):
        row = {"problem": f"What is {k}?", "level": "1", "solution": f"As one sees, it is $\\boxed{{x^{{{k}}}}}$."}
        write(tmp_path / "math" / ("train", "test")[k % 2] / "algebra" / f"{k}.json", row)
    task = load(tmp_path / "math")
    assert (task.signature, task.metric, len(task.test)) == ("problem -> answer", ExactMatch(), N // 2)
    assert {e.answer for e in task.test} == {f"x^{{{k}}}" for k in range(1, N, 2)}
    assert all("As one sees" in e.solution for e in everything(task))
    check(task)


def test_questions_inside_of_paragraphs(tmp_path: Path) -> None:
    asked = [
        [{"question": f"q{k}{n}?", "id": n, "answers": [{"text": f"a{k}", "answer_start": 1}]} for n in range(3)]
        for k in range(N)
    ]
    data = [{"title": "t", "paragraphs": [{"context": f"c{k}", "qas": each}]} for k, each in enumerate(asked)]
    task = load(write(tmp_path / "data.json", {"version": "1", "data": data}))
    assert task.signature == "title, context, question -> answers" and len(everything(task)) == 3 * N
    check(task)
    spans = {"number": "", "spans": ["x", "y"], "date": {"day": "", "month": "", "year": ""}}
    number = {"number": "3", "spans": [], "date": {}}
    drop = {
        f"p{k}": {"passage": f"text {k}", "qa_pairs": [{"question": f"q{k}", "answer": (spans, number)[k % 2]}]}
        for k in range(N)
    }
    task = load(write(tmp_path / "drop.json", drop))
    assert task.signature == "passage, question -> answer"
    assert {e.accepted for e in everything(task)} == {("x", "y"), ("3",)}
    assert "qa_pairs" in kinds(load(tmp_path / "drop.json", inputs="passage", outputs="qa_pairs"))


def test_very_many_rows_are_chosen_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_ROWS", 20)
    rows = pairs(60)
    first, second = (load(write(tmp_path / "data.json", each)) for each in (rows, rows[::-1]))
    assert len(everything(first)) == 20 and first.test == second.test


def test_parquet_and_arrow_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet, ipc = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.ipc")
    day = datetime.date(2026, 1, 1)
    table = pyarrow.table({"question": [day + datetime.timedelta(k) for k in range(N)],
                           "answer": [decimal.Decimal(k) / 4 for k in range(N)]})  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table, tmp_path / "b")
    for name, written in (("c.arrow", ipc.new_file), ("d.arrow", ipc.new_stream)):
        with written(tmp_path / name, table.schema) as sink:
            sink.write_table(table)
    for name in ("a.parquet", "b", "c.arrow", "d.arrow"):
        task = load(tmp_path / name)
        assert task.metric == Number() and len(everything(task)) == N
        assert "2026-01-05" in {e.question for e in everything(task)}


def test_parquet_with_the_names_of_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"t{k}" for k in range(N)], "label": [k % 2 for k in range(N)]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "data.parquet")
    task = load(tmp_path / "data.parquet")
    assert kinds(task)["label"] == Literal["no", "yes"]
    check(task)


def test_a_folder_that_datasets_has_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    named = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    features = datasets.Features({"text": datasets.Value("string"), "tags": named})
    unlabelled = datasets.Dataset.from_dict({"text": [f"u{k}" for k in range(N)], "tags": [[]] * N}, features=features)
    parts = {
        part: datasets.Dataset.from_dict(
            {"text": [f"{part}{k}" for k in range(N)], "tags": [[k % 3, 1] for k in range(N)]}, features=features
        )
        for part in ("train", "validation")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "tagged")
    task = load(tmp_path / "tagged")
    assert task.name == "tagged" and isinstance(task.metric, SetF1)
    assert kinds(task)["tags"] == list[Literal["x", "y", "z"]]
    assert all(e.text.startswith("validation") for e in task.test) and len(task.test) == N
    assert not any(e.text.startswith("validation") for e in (*task.train, *task.validation))
    check(task)
    unlabelled.save_to_disk(tmp_path / "single", num_shards=2)
    assert len(everything(load(tmp_path / "single", outputs="tags"))) == N


def test_files_that_hold_nothing_to_load_are_told_so(tmp_path: Path) -> None:
    for name, text, problem in (
        ("a.csv", "question\n" + "x\n" * 20, "no table: there is one column only (question)"),
        ("a.md", "# A title\n" + "Some prose.\n" * 20, "no table: there is one column only (# A title)"),
        ("a.json", "{}", "no list of records in it"),
        ("a.json", '["a", "b"]', "no list of records in it; there is: list"),
        ("a.json", "[]", "0 different rows"),
        ("a.json", "", "not JSON"),
        ("a.csv", "", "0 different rows"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n3\n', "line 2: expected an object, got int"),
        ("a.csv", "text,label\na,b,c\n", "line 2: 3 cells, the first line has 2"),
        ("a.csv", "text,text,label\na,b,c\n", "line 1: two columns are called 'text'"),
        ("a.csv", 'text,label\n"a,b\n', "line 2: unexpected end of data"),
        ("a.parquet", "PAR1", "neither Parquet nor Arrow data"),
        ("b.parquet", "none of it", "neither Parquet nor Arrow data"),
    ):
        (path := tmp_path / name).write_text(text)
        assert problem in refused(path), name
    assert "No such file" in refused(tmp_path / "none.parquet")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[]")[:-9])
    assert "end-of-stream" in refused(tmp_path / "a.json.gz")
    (tmp_path / "a.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    assert "run git lfs pull" in refused(tmp_path / "a.jsonl")
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as book:
        book.writestr("a.xml", "<a/>")
        book.writestr("b.xml", "<b/>")
    assert "or a workbook" in refused(tmp_path / "a.xlsx")
    assert "no data in this folder" in refused(write(tmp_path / "empty" / "notes.md", "x").parent)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (path := tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "needs the package 'pyarrow' (pip install pyarrow)" in refused(path)


# --- parts that the data sets apart ---


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("squad-train.json", "squad-dev.json"),
        ("train/rows.jsonl", "test/rows.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001-0123456789abcdef.jsonl"),
        ("induce/sum.json", "execute/sum.json"),
    ],
)
def test_test_rows_stay_out_of_train(tmp_path: Path, train: str, test: str) -> None:
    write(tmp_path / train, pairs(40))
    write(tmp_path / test, [*pairs(20, "t"), *pairs(5)])
    for path in (tmp_path / train, tmp_path / test, tmp_path):
        task = load(path)
        told = {e.question for e in task.test}
        assert told == {row["question"] for row in (*pairs(20, "t"), *pairs(5))}
        assert len(task.train) + len(task.validation) == 35 and len(task.train) == 17
        check(task)


def test_lists_by_part_in_one_file(tmp_path: Path) -> None:
    data = {"train": pairs(60), "validation": pairs(20, "v"), "test": pairs(20, "t")}
    task = load(write(tmp_path / "data.json", data))
    assert [{e.question[0] for e in split} for split in (task.train, task.validation, task.test)] == [
        {"q"}, {"v"}, {"t"}
    ]  # fmt: skip
    assert [len(task.train), len(task.validation), len(task.test)] == [40, 20, 20]


def test_a_test_part_stays_test_where_only_a_validation_part_stands_beside_it(tmp_path: Path) -> None:
    task = load(write(tmp_path / "data.json", {"dev": pairs(40, "v"), "test": pairs(20, "t")}))
    assert [{e.question[0] for e in split} for split in (task.train, task.validation, task.test)] == [
        {"v"}, {"v"}, {"t"}
    ]  # fmt: skip


def test_a_part_without_answers_is_left_out_and_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "train.csv", classified())
    forms: list[tuple[dict[str, object], str]] = [
        ({}, "'label', so that this part is not used; its columns are: text; rename the one that is meant, if one is"),
        ({"class": "good"}, "'label', so that this part is not used; its columns are: text, class; rename the one"),
        ({"label": "", "more": 1}, "'label', so that this part is not used$"),
        ({"label": -1}, "'label', so that this part is not used$"),
    ]
    for more, told in forms:
        test = write_table(tmp_path / "test.csv", [{"text": f"unseen {k}", **more} for k in range(N)])
        with pytest.warns(UserWarning, match=f"{test}: no row of the test part has {told}") as caught:
            task = load(path)
        assert [len(task.train), len(task.validation), len(task.test)] == [10, 10, 10]
        assert [each.filename for each in caught] == [__file__]
    test.rename(tmp_path / "dev.csv")
    write_table(tmp_path / "test.csv", [{"sentence": f"unseen {k}", "label": "good"} for k in range(N)])
    with pytest.warns(UserWarning) as caught:
        task = load(path)
    assert len(task.test) == 10 and not any(e.text.startswith("unseen") for e in everything(task))
    assert [str(each.message).partition(" has ")[0].rpartition("/")[2] for each in caught] == [
        "dev.csv: no row of the validation part", "test.csv: no row of the test part"
    ]  # fmt: skip


def test_a_part_without_a_column_that_belongs_to_the_question_is_named(tmp_path: Path) -> None:
    data = {"train": [{"context": "c", **row} for row in pairs(60)], "test": pairs(20, "t")}
    told = r"data.json\[test\]: no row of the test part has 'context'; its columns are: question, answer"
    with pytest.warns(UserWarning, match=told):
        task = load(write(tmp_path / "data.json", data))
    assert {e.question[0] for e in task.test} == {"t"}


def test_minus_one_is_a_class_where_the_training_part_has_it(tmp_path: Path) -> None:
    rows = [{"text": f"text {k}", "label": k % 3 - 1} for k in range(N)]
    data = {"train": rows, "test": [{"text": f"unseen {k}", "label": -1} for k in range(N)]}
    with warnings.catch_warnings(action="error"):
        assert {e.label for e in load(write(tmp_path / "data.json", data)).test} == {"-1"}


def test_shards_are_one(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"data-0000{k}-of-00003.jsonl", pairs(10, f"s{k}-"))
    assert len(everything(load(tmp_path))) == len(everything(load(tmp_path / "data-00001-of-00003.jsonl"))) == 30


def test_a_folder_of_several_data_sets_is_refused(tmp_path: Path) -> None:
    for name in ("one.json", "two.json", "state.json", ".hidden.json", "README.md"):
        write(tmp_path / name, pairs())
    assert refused(tmp_path).endswith("holds several data sets (one.json, two.json); name one of them")
    write(tmp_path / "task.json", pairs())
    assert len(everything(load(tmp_path))) == N


def test_too_few_rows_to_train_on_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", pairs(1))
    write(tmp_path / "test.jsonl", pairs(40))
    assert "0 training rows that are not in the test part too" in refused(tmp_path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1", "(A) x", "#### 3"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(NAMES, JSON, min_size=1, max_size=4), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=JSON | ROWS.map(lambda rows: [*rows, *pairs(12)]) | ROWS.map(lambda rows: rows * 12), lines=st.booleans())
def test_whatever_json_there_is_the_end_is_a_task_or_one_line(tmp_path: Path, data: Any, lines: bool) -> None:
    rows = data if isinstance(data, list) else [data]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(data)
    (path := tmp_path / "data.json").write_text(text)
    task_or_one_line(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    text=st.text(st.sampled_from("ab1,;\t\"'\n\r|{[ é#"), max_size=200),
    times=st.integers(1, 20),
    name=st.sampled_from(["a.csv", "a.tsv", "a.txt", "a.json", "a.jsonl", "train.csv"]),
)
def test_whatever_text_there_is_the_end_is_a_task_or_one_line(tmp_path: Path, text: str, times: int, name: str) -> None:
    (path := tmp_path / name).write_text(text * times, newline="")
    task_or_one_line(path)


def task_or_one_line(path: Path) -> None:
    try:
        task = load(path)
    except TaskError as error:
        assert "\n" not in str(error)
        assert str(path.parent) in str(error) or "different rows" in str(error)
    else:
        check(task)


# --- which columns ---


@pytest.mark.parametrize(
    ("row", "signature"),
    [
        ({"id": "{}", "Question": "q{}", "Best Answer": "a{}", "Source": "s"}, "Question -> Best_Answer"),
        ({"cause": "c{}", "effect": "e{}"}, "cause -> effect"),
        ({"instruction": "i{}", "input": "", "output": "o{}"}, "instruction -> output"),
        ({"title": "t", "context": "c", "question": "q{}", "answer": "a{}"}, "title, context, question -> answer"),
        ({"premise": "p{}", "hypothesis": "h", "verdict": "v{}"}, "premise, hypothesis -> verdict"),
        ({"sentence1": "p{}", "sentence2": "h", "gold_label": "v{}"}, "sentence1, sentence2 -> gold_label"),
        ({"input": "i{}", "output": "o{}", "sentence": "s", "words": "w"}, "input -> output"),
        ({"problem": "p{}", "solution": "s", "answer": "a{}"}, "problem -> answer"),
        ({"text": "t{}", "label": "7", "label_text": "l{}"}, "text -> label_text"),
        ({"document": "d{}", "my summary": "s{}"}, "document -> my_summary"),
        ({"article_text": "d{}", "reference summary": "s{}"}, "article_text -> reference_summary"),
        ({"class": "c{}", "my text": "t{}"}, "my_text -> class_"),
        ({"1st": "q{}", "answer": "a{}"}, "column_1st -> answer"),
        ({"items": "q{}", "labels": "a{}"}, "items_ -> labels_"),
        ({"fields": {"input": "q{}"}, "answer": "a{}"}, "input -> answer"),
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path: Path, row: dict[str, object], signature: str) -> None:
    rows = [json.loads(json.dumps(row).replace("{}", str(k))) for k in range(N)]
    task = load(write(tmp_path / "data.jsonl", rows))
    assert task.signature == signature
    check(task)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "t", "coarse_label": "a", "fine_label": "b"}, "is not clear: coarse_label or fine_label"),
        ({"prompt": "p", "key": 1, "kwargs": "x", "more": "y"}, "what the answer is, is not clear"),
        ({"one": "p", "two": "x", "three": "y"}, "what is asked and what the answer is, is not clear"),
        ({"one": "p", "two": "x", "answer": "y"}, "what is asked is not clear"),
    ],
)
def test_what_is_not_clear_is_asked(tmp_path: Path, row: dict[str, object], problem: str) -> None:
    path = write(tmp_path / "data.json", [{name: f"{value}{k}" for name, value in row.items()} for k in range(N)])
    told = refused(path)
    assert problem in told and f"columns are: {', '.join(row)}; say which, as in inputs=" in told
    assert load(path, **eval(f"dict({told.rpartition(' as in ')[2]})"))  # it can be pasted
    assert "column 'one' is given twice" in refused(write(path, [{"one": "x"}] * N), inputs="one", outputs="one")
    write(path, [row] * N)
    assert "no column 'nine'; there are: " in refused(path, inputs="nine", outputs=list(row)[-1])


@pytest.mark.parametrize(
    ("row", "signature"),
    [
        ({"Class Index": 1, "Title": "The title {}", "Description": "Of {}"}, "Title, Description -> Class_Index"),
        ({"text": "A text, {}", "Category-Name": "c", "id": "{}"}, "text -> Category_Name"),
        ({"title": "The title {}", "abstract": "What it says on {}", "label": "l"}, "title, abstract -> label"),
        ({"sentence": "The soup {}", "aspect": "t", "sentiment": "s"}, "sentence, aspect -> sentiment"),
        ({"question": "q{}", "passage_1": "p {}", "passage_2": "", "answer": "{}"}, "question, passage_1 -> answer"),
        ({"facts": "A fact is {}", "question": "q{}", "answer": "a {}"}, "facts, question -> answer"),
    ],
)  # fmt: skip
def test_columns_with_content_are_used(tmp_path: Path, row: dict[str, object], signature: str) -> None:
    classes = ("Class Index", "Category-Name", "label", "sentiment", "aspect")
    rows = [json.loads(json.dumps(row).replace("{}", str(k))) for k in range(N)]
    rows = [{n: f"{v}{k % 3}" if n in classes else v for n, v in each.items()} for k, each in enumerate(rows)]
    with warnings.catch_warnings(action="error"):
        task = load(write(tmp_path / "data.jsonl", rows))
    assert task.fields.split(":")[0] == signature
    check(task)


def test_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    rows = [
        {"id": k, "text": f"A text, {k}", "label": k % 2, "label_name": "ny"[k % 2], "lang": ("en", "de")[k % 3 // 2],
         "always": "x", "votes": k, "file": f"a/{k}.txt", "class_id": k % 3, "remark": f"They say {k}", "n": k % 7,
         "source": f"It was said in a long letter that came from {k}"}
        for k in range(N)
    ]  # fmt: skip
    path = write(tmp_path / "data.jsonl", rows)
    with pytest.warns(UserWarning) as caught:
        load(path)
    told = "inputs='text', outputs='label_name'; name the columns by inputs=..., outputs=... to change that"
    assert [str(w.message) for w in caught] == [
        f"{path}: not used: 'class_id', 'remark', 'n', 'source'; the task is {told}"
    ]
    assert caught[0].filename == __file__
    with warnings.catch_warnings(action="error"):  # what has been named is meant
        load(path, inputs="text", outputs="label_name")
        load(path, inputs="text")


def test_what_is_left_out_of_a_record_is_named(tmp_path: Path) -> None:
    rows = [{"case": {"input": f"i {k}", "hint": f"h {k}"}, "answer": f"a {k}"} for k in range(N)]
    with pytest.warns(UserWarning, match=r"not used: 'case.hint'; the task is inputs='case.input', outputs='answer'"):
        load(write(tmp_path / "data.jsonl", rows))


def test_a_title_and_its_text_are_no_question_and_answer(tmp_path: Path) -> None:
    rows = [{"Title": f"The title {k}", "Description": f"A story of {k}"} for k in range(N)]
    assert "what the answer is, is not clear; columns are: Title, Description" in refused(
        write(tmp_path / "d.json", rows)
    )


def test_columns_become_the_fields_that_are_named(tmp_path: Path) -> None:
    rows = [{"prompt_text": f"what is {k}?", "a": {"b": f"so {k % 5}"}, "more": f"m{k}"} for k in range(N)]
    path = write(tmp_path / "data.json", rows)
    task = load(path, inputs={"question": "prompt_text", "more": "more"}, outputs={"answer": "a.b"})
    first = task.train[0]
    assert set(first.inputs().keys()) == {"question", "more"} and first.answer.startswith("so ")
    plain = load(path, inputs=["prompt_text", "more"], outputs="a.b")
    whole = [[*made.train, *made.validation, *made.test] for made in (task, plain)]
    assert sorted(e.question for e in whole[0]) == sorted(e.prompt_text for e in whole[1])
    assert type(task.metric) is type(plain.metric)
    assert load(path, inputs={"answer": "prompt_text"}, outputs="more").signature == "answer -> more"
    wrong = "no column 'promt_text'; did you mean 'prompt_text'? There are: prompt_text, a, more"
    assert wrong in refused(path, inputs={"question": "promt_text"}, outputs="more")
    twice = "two columns are to be the field 'x': give 'prompt_text' another name"
    assert twice in refused(path, inputs={"x": "prompt_text"}, outputs={"x": "more"})
    assert twice.replace("'x'", "'more'") in refused(path, inputs={"more": "prompt_text"}, outputs="more")
    assert "column 'more' is given twice" in refused(path, inputs={"x": "more"}, outputs="more")
    for name in ("2nd", "class", "reasoning", "inputs", "a b"):
        problem = f"{name!r} cannot be the name of a field: give 'more' another one"
        assert problem in refused(path, inputs={name: "more"}, outputs="prompt_text")


def test_a_column_that_is_called_otherwise_is_read_as_before(tmp_path: Path) -> None:
    solved = [{"problem": f"{k} + 1?", "solution": rf"It is $\boxed{{{k + 1}}}$."} for k in range(N)]
    task = load(write(tmp_path / "math.json", solved), inputs={"q": "problem"}, outputs={"result": "solution"})
    assert {example.result for example in task.train} <= {str(k + 1) for k in range(N)}
    talks = [{"chat": [{"role": "user", "content": f"hi {k}"}, {"role": "assistant", "content": f"ho {k}"}]}
             for k in range(N)]  # fmt: skip
    task = load(write(tmp_path / "chat.json", talks), inputs={"said": "chat"})
    assert set(task.train[0].inputs().keys()) == {"said"}


def test_told_columns_and_paths(tmp_path: Path) -> None:
    rows = [{"text": "t", "a": {"b": [{"c": f"c{k}"}]}, "j": json.dumps({"x": {"y": f"y{k}"}})} for k in range(N)]
    task = load(write(tmp_path / "data.json", rows), inputs=["text", "a.b.0.c"], outputs="j.x.y")
    assert task.signature == "text, c -> y"
    assert all(e.c[1:] == e.y[1:] for e in everything(task))
    same = [{"a": {"x": f"{k}"}, "b": {"x": f"v{k}"}, "c": "w"} for k in range(N)]
    task = load(write(tmp_path / "same.json", same), inputs=["a.x", "c"], outputs="b.x")
    assert task.signature == "x, c -> b_x"


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_one_side_told(tmp_path: Path, side: str) -> None:
    path = write(tmp_path / "data.json", [{"one": f"a{k}", "answer": f"b{k}"} for k in range(N)])
    assert load(path, **{side: "one" if side == "inputs" else "answer"}).signature == "one -> answer"  # type: ignore[arg-type]


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    bad = {"question": "q", "answer": [{}]}
    path = write(tmp_path / "data.jsonl", [*pairs(3), bad, *pairs()])
    assert "line 4: 'answer' must be a text or a number, got dict" in refused(path, metric="exact")


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"question": "", "answer": "a"}, "question"),
        ({"question": "q", "answer": " "}, "answer"),
        ({"question": "q"}, "answer"),
        ({"question": "q", "answer": None}, "answer"),
        ({"question": "q", "answer": "NaN"}, "answer"),
        ({"question": "q", "answer": []}, "answer"),
        ({"question": "q", "answer": {"text": [], "answer_start": []}}, "answer"),
    ],
)
def test_rows_without_a_question_or_an_answer_are_left_out_and_told(
    tmp_path: Path, bad: dict[str, object], name: str
) -> None:
    path = write(tmp_path / "data.jsonl", [*pairs(3), bad, *pairs()])
    with pytest.warns(UserWarning, match=f"left out 1 of 34 rows, where '{name}' is missing or empty, as at line 4"):
        task = load(path)
    assert len(everything(task)) == N and all(e.question != "q" for e in everything(task))
    check(task)
    most = refused(write(path, [*pairs(14), *[bad] * 15]))
    assert f"line 15: '{name}' is missing or empty, as in 15 of 29 rows" in most


def test_a_column_that_says_one_thing_or_mostly_nothing_is_no_answer(tmp_path: Path) -> None:
    rows = [{**row, "answer": "accept", "score": 0.5 if k < 3 else None} for k, row in enumerate(classified())]
    assert load(write(tmp_path / "data.json", rows)).fields == "text -> label: one of 3"


# --- answers ---


def test_classes_become_a_literal(tmp_path: Path) -> None:
    task = load(write(tmp_path / "data.jsonl", classified()))
    assert kinds(task) == {"text": str, "label": Literal["bad", "good", "so-so"]}
    assert task.metric == ExactMatch("label") and task.fields == "text -> label: one of 3"
    check(task)


def test_a_hundred_and_fifty_classes_are_still_classes(tmp_path: Path) -> None:
    for n, kind in ((150, 150), (151, 0)):
        rows = [{"text": f"t{k}", "intent": f"intent_{k % n}"} for k in range(1000)]
        assert len(get_args(kinds(load(write(tmp_path / "data.jsonl", rows)))["intent"])) == kind


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([f"name {k}" for k in range(N)], "all different"),
        (["yes", "no"] * (N // 2 - 1) + ["maybe", "yes"], "one stands alone: there may be more"),
        ([f"text number {k}"[-4:] for k in range(N)], "copied"),
        (["x" * 61, "y"] * (N // 2), "too long"),
        (["3", "4"] * (N // 2), "numbers"),
    ],
)
def test_what_is_no_class_stays_text(tmp_path: Path, values: list[str], why: str) -> None:
    rows = [{"text": f"text number {k}", "answer": value} for k, value in enumerate(values)]
    assert load(write(tmp_path / "data.jsonl", rows)).signature == "text -> answer", why


def test_choices_of_a_benchmark_stay_text(tmp_path: Path) -> None:
    question = "q{}\nOptions:\n- Yes\n- No"
    examples = [{"input": question.format(k), "target": ("Yes", "No")[k % 2]} for k in range(N)]
    task = load(write(tmp_path / "data.json", {"examples": examples}))
    assert task.signature == "question -> answer" and task.metric == Choice()
    plain = [{"input": f"q{k}", "target": ("yes", "no")[k % 2]} for k in range(N)]
    task = load(write(tmp_path / "data.json", {"examples": plain}))
    assert task.signature == "question -> answer" and task.metric == ExactMatch()


def test_solutions_end_in_the_answer(tmp_path: Path) -> None:
    rows = [{"question": f"q{k}", "answer": f"It is {k} + 1.\n#### 1,{k:03}"} for k in range(N)]
    task = load(write(tmp_path / "data.jsonl", rows))
    assert task.signature == "question -> answer" and task.metric == Number()
    example = task.train[0]
    assert example.answer.startswith("1,") and example.solution.endswith(f"#### {example.answer}")
    assert example.accepted == (example.answer,) and set(example.inputs().keys()) == {"question"}
    check(task)


@pytest.mark.parametrize(
    ("answer", "metric", "expected"),
    [
        ("@", None, Number("answer")),
        (7.5, None, Number("answer")),
        (["three", "@"], None, Number("answer")),
        ("word @", None, ExactMatch("answer")),
        (["word @", "w@"], None, ExactMatch("answer")),
        ("word @ " * 25, None, TokenF1("answer")),
        (["word @"], "set_f1", SetF1("answer")),
        ("a@, b", "set_f1", SetF1("answer")),
        ({"a": 1, "b": "x@"}, None, JsonFields(("answer",))),
        ('{"a": "@"}', None, JsonFields(("answer",))),
        ("word @", "f1", TokenF1("answer")),
        ("word @", "json_fields", JsonFields(("answer",))),
        ("(A) @", "choice", Choice("answer")),
        ({"text": ["x@", "y"], "answer_start": [1, 2]}, None, ExactMatch("answer")),
        ({"value": "x@", "aliases": ["y"]}, None, ExactMatch("answer")),
        ([{"text": "x@", "answer_start": 1}], None, ExactMatch("answer")),
        ([{"kind": "x@", "at": 1}], None, SetF1("answer")),
    ],
)
def test_the_metric_suits_the_answers(tmp_path: Path, answer: object, metric: str | None, expected: object) -> None:
    rows = [{"question": f"q{k}", "answer": json.loads(json.dumps(answer).replace("@", str(k)))} for k in range(N)]
    task = load(write(tmp_path / "data.jsonl", rows), metric=metric)
    assert task.metric == expected
    check(task)


def test_lists_under_a_label_are_sets_and_under_an_answer_alternatives(tmp_path: Path) -> None:
    rows = [{"text": f"t{k}", "tags": ["a", "b"][: k % 3], "answer": ["three", str(k)]} for k in range(N)]
    path = write(tmp_path / "data.jsonl", rows)
    tags = load(path, outputs="tags")
    assert tags.fields == "text -> tags: list[Literal['a', 'b']]"
    assert kinds(tags)["tags"] == list[Literal["a", "b"]] and tags.metric == SetF1("tags")
    assert any(e.tags == [] for e in everything(tags)) and "accepted" not in tags.train[0]
    answers = load(path, outputs="answer")
    assert answers.signature == "text -> answer" and answers.train[0].accepted[1:] == ("three",)
    check(tags)
    check(answers)


def test_options_in_a_column_of_their_own_get_letters(tmp_path: Path) -> None:
    letters = "ABC"
    forms: dict[str, list[dict[str, object]]] = {
        "places": [{"choices": ["x", "y", f"z{k}"], "answer": k % 3} for k in range(N)],
        "places from one": [{"options": ["x", "y", f"z{k}"], "answer": 1 + k % 3} for k in range(N)],
        "labels": [
            {"choices": {"text": ["x", "y", f"z{k}"], "label": list("123")}, "answer": "123"[k % 3]} for k in range(N)
        ],
        "texts": [{"options": dict(zip("ABC", ("x", "y", f"z{k}"), strict=True)),
                   "answer": ("x", "y", f"z{k}")[k % 3]} for k in range(N)],
        "letters": [{"options": ["A) x", "B) y", f"C) z{k}"], "answer": letters[k % 3]} for k in range(N)],
        "inside of the question": [
            {"question": {"stem": f"q{k}", "choices": [{"label": c, "text": t} for c, t in zip(
                letters, ("x", "y", f"z{k}"), strict=True)]}, "answerKey": letters[k % 3]} for k in range(N)
        ],
        "columns": [{"A": "x", "B": "y", "C": f"z{k}", "answer": letters[k % 3]} for k in range(N)],
        "numbered": [{"option1": "x", "option2": "y", "option3": f"z{k}", "answer": str(1 + k % 3)} for k in range(N)],
    }  # fmt: skip
    for name, column in forms.items():
        rows = [{"question": f"q{k}", **row} for k, row in enumerate(column)]
        task = load(write(tmp_path / "data.jsonl", rows))
        assert isinstance(task.metric, Choice), name
        for example in everything(task):
            k = int((example.get("question") or example.stem)[1:])
            options, answer = example.get("choices") or example.options, example.get("answer") or example.answerKey
            assert options == f"(A) x\n(B) y\n(C) z{k}" and answer == f"({letters[k % 3]})", name
        check(task)


def test_options_that_the_answers_do_not_fit_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"question": f"q{k}", "options": ["x", "y"], "answer": f"other {k}"} for k in range(N)]
    task = load(write(tmp_path / "data.jsonl", rows))
    assert kinds(task)["options"] == list[str] and task.metric == ExactMatch()


# --- typed fields ---


def invoices() -> list[dict[str, object]]:
    return [
        {
            "document": f"Invoice {k}.",
            "fields": {
                "vendor name": f"v{k}",
                "currency": ("EUR", "USD")[k % 2],
                "total": k * 1.5,
                "count": k,
                "paid": k % 3 == 0,
                "lines": [{"what": f"w{k}", "price": k}] * (k % 3),
                **({"due": None} if k % 5 == 0 else {"due": f"day {k}"} if k % 2 else {}),
                "class": "x",
            },
        }
        for k in range(N)
    ]


def test_records_become_models(tmp_path: Path) -> None:
    task = load(write(tmp_path / "data.jsonl", invoices()))
    model = kinds(task)["fields_"]
    assert task.fields == "document -> fields_: Fields" and task.metric == JsonFields(("fields_",))
    found = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    assert found["currency"] == Literal["EUR", "USD"] and found["vendor name"] is str and found["total"] is float
    assert found["count"] is int and found["paid"] is bool and found["due"] == str | None and found["class"] is str
    assert get_args(found["lines"])[0].model_fields["price"].annotation is int
    for example in everything(task):
        parsed = model.model_validate(example.fields_)
        assert Metric(task.metric).call(example, dspy.Prediction(fields_=parsed)) == Judged(1.0, "", {})
    check(task)


def test_several_outputs_have_types_of_their_own(tmp_path: Path) -> None:
    told = ["fields.currency", "fields.total", "fields.due"]
    task = load(write(tmp_path / "data.jsonl", invoices()), inputs="document", outputs=told)
    assert {n: k for n, k in kinds(task).items() if n != "document"} == {
        "currency": Literal["EUR", "USD"], "total": float, "due": str | None
    }  # fmt: skip
    assert task.metric == JsonFields(("currency", "total", "due"))
    assert any("due" not in e for e in everything(task))
    check(task)


def test_a_mapping_of_many_keys_is_no_record(tmp_path: Path) -> None:
    rows = [{"text": f"t{k}", "counts": {f"word{k}": k, f"word{k + 1}": 1}} for k in range(60)]
    task = load(write(tmp_path / "data.jsonl", rows), outputs="counts")
    assert kinds(task)["counts"] == dict[str, int]
    check(task)


def test_truth_values_are_truth_values(tmp_path: Path) -> None:
    rows = [{"question": f"is {k} odd?", "passage": "", "answer": k % 2 == 1} for k in range(N)]
    rows[0]["passage"] = "There are numbers."
    task = load(write(tmp_path / "data.jsonl", rows))
    assert kinds(task)["answer"] is bool and task.metric == ExactMatch()
    check(task)


def test_typed_signatures_are_the_same_in_every_process(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", invoices())
    task = load(path)
    same = load(path)
    assert fingerprint(task.signature) == fingerprint(same.signature) and fingerprint(task.train) == fingerprint(
        same.train
    )
    assert pickle.loads(pickle.dumps(task.train))[0].toDict() == task.train[0].toDict()
    code = (
        "from cuesmith.programs.tasks import load; from cuesmith.teleprompters.runtime.fingerprint import fingerprint;"
        f"print(fingerprint(load({str(path)!r}).signature))"
    )
    assert Forked(code).done().stdout.strip() == fingerprint(task.signature)
    other = load(
        write(path, [{**row, "document": f"{row['document']}", "fields": {"total": "x"}} for row in invoices()])
    )
    assert fingerprint(other.signature) != fingerprint(task.signature)


# --- conversations ---


def test_conversations_become_a_history_and_a_question(tmp_path: Path) -> None:
    def said(k: int, keys: tuple[str, str], user: str, assistant: str) -> list[dict[str, str]]:
        turns = [("system", "Be kind."), (user, f"u{k}"), (assistant, f"a{k}"), (user, f"v{k}"), (assistant, f"b{k}")]
        return [dict(zip(keys, turn, strict=True)) for turn in turns]

    for column, keys, user, assistant in (
        ("messages", ("role", "content"), "user", "assistant"),
        ("conversations", ("from", "value"), "human", "gpt"),
    ):
        rows = [{"id": k, column: said(k, keys, user, assistant), "category": "chat"} for k in range(N)]
        task = load(write(tmp_path / "data.jsonl", rows))
        assert kinds(task) == {"system": str, "history": dspy.History, "question": str, "answer": str}
        example = task.train[0]
        k = example.question[1:]
        assert example.history.messages == [{"question": f"u{k}", "answer": f"a{k}"}] and example.answer == f"b{k}"
        check(task)


def test_one_turn_is_an_input_and_an_output(tmp_path: Path) -> None:
    def said(k: int) -> list[dict[str, object]]:
        parts = [{"type": "text", "text": f"u{k}"}]
        return [{"role": "user", "content": parts}, {"role": "assistant", "content": f"a{k}"}]

    task = load(write(tmp_path / "data.jsonl", [{"messages": said(k)} for k in range(N)]))
    assert task.signature == "question -> answer"
    ideal = [{"input": said(k)[:1], "ideal": [f"a{k}", "a"] if k % 2 else f"a{k}"} for k in range(N)]
    task = load(write(tmp_path / "data.jsonl", ideal))
    assert task.signature == "input -> ideal" and len(task.train[0].accepted) in (1, 2)
    judged = [{"messages": said(k), "label": ("kind", "rude")[k % 2]} for k in range(N)]
    task = load(write(tmp_path / "data.jsonl", judged), outputs="label")
    assert task.fields == "messages -> label: one of 2" and "\n\nassistant: a" in task.train[0].messages
    check(task)


def test_a_column_of_the_systems_texts_goes_with_the_conversation(tmp_path: Path) -> None:
    talk = [[{"from": "human", "value": f"u{k}"}, {"from": "gpt", "value": f"a{k}"}] for k in range(N)]
    rows = [{"system": "Be kind.", "conversations": each, "score": 3} for each in talk]
    assert load(write(tmp_path / "data.jsonl", rows)).signature == "system, question -> answer"


def test_a_conversation_with_a_third_party_is_refused(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "tool", "content": f"u{k}"}, {"role": "assistant", "content": "x"}]} for k in range(N)
    ]
    assert "line 1: 'messages': message 1 has the role 'tool'" in refused(write(tmp_path / "data.jsonl", rows))


# --- the wanted metric ---


def test_a_wrong_metric_is_told_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", pairs())
    assert refused(path, metric="exactt") == "no metric 'exactt'; did you mean 'exact'?"
    assert "there are: exact, choice, number" in refused(path, metric="zzz")
    named = write(tmp_path / "named.jsonl", [{"question": f"q{k}", "answer": f"x{'yz'[k % 2]}"} for k in range(N)])
    assert "line 1: metric 'number' gives the right answer {'answer': 'xy'} the score 0" in refused(
        named, metric="number"
    )
    invoice = write(tmp_path / "invoice.jsonl", invoices())
    assert "'fields' must be a text or a number, got dict" in refused(invoice, metric="f1")
    told = {"inputs": "document", "outputs": ["fields.total", "fields.count"], "metric": "f1"}
    assert "metric 'f1' judges one output, there are 2" in refused(invoice, **told)


def test_a_metric_of_ones_own_is_not_called(tmp_path: Path) -> None:
    def mine(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        raise AssertionError("it may cost money")

    assert load(write(tmp_path / "data.jsonl", pairs()), metric=mine).metric is mine


# --- runs on what was loaded ---


def engine(task: Task) -> ToyEngine:
    """A model that is right on a third of the questions, and on all of them where the prompt has steps."""
    examples = everything(task)
    asked = [[v for v in example.inputs().toDict().values() if isinstance(v, str)] for example in examples]
    outputs = list(dspy.ensure_signature(task.signature).output_fields)

    def reply(system: str, user: str, drawn: int | None) -> str:
        own = next(e for e, texts in zip(examples, asked, strict=True) if all(text.strip() in user for text in texts))
        said = own if "Step 1" in system or number(user) % 3 == 0 else examples[number(user) % len(examples)]
        values = [said.get(name) for name in outputs]
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        fields = [("reasoning", "So."), *zip(outputs, texts, strict=True), ("completed", "")]
        return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in fields)

    return ToyEngine(reply=reply)


@pytest.mark.parametrize("compiler", ["abo", "apo"])
@pytest.mark.parametrize("kind", ["records", "classes", "conversations"])
def test_compilers_run_on_typed_tasks(tmp_path: Path, kind: str, compiler: str) -> None:
    talks = [
        {"messages": [{"role": r, "content": f"{r} {k}."} for r in ("system", "user", "assistant")]} for k in range(N)
    ]
    rows: dict[str, Rows] = {"records": invoices(), "classes": classified(), "conversations": talks}
    task = load(write(tmp_path / "data.jsonl", rows[kind]), sizes=Sizes(10, 10, 10))
    student = dspy.ChainOfThought(task.signature)
    with dspy.context(lm=toy_lm(engine(task))):
        compiled = compile(
            student, compiler, metric=task.metric, trainset=task.train, valset=task.validation,
            optimizer_lm=SimulatedOptimizer(), budget=Budget(calls=120), progress=False,
        )  # fmt: skip
        before, after = (evaluate(program, task.test, task.metric) for program in (student, compiled))
    assert before.missing == after.missing == 0 and after.mean >= before.mean
    assert not {"inputs", "gold"} & {note.kind for note in compiled.compilation.notes}
    compiled.save(tmp_path / "program.json")
    dspy.ChainOfThought(task.signature).load(tmp_path / "program.json")
    if compiler == "abo":
        assert after.mean == 1.0


# --- real data ---

if SHARED is not None:
    FILES = [p for p in sorted(SHARED.rglob("*")) if p.suffix in (".json", ".jsonl", ".csv")]
    REAL = [str(p.relative_to(SHARED)) for p in FILES if p.name != "categories.json"]
else:
    REAL = []


@pytest.mark.skipif(SHARED is None, reason="the data is not on this machine")
@pytest.mark.parametrize("name", [*REAL, "banking77", "gsm8k", "facility_support"])
def test_real_data_loads_and_passes_the_checks(name: str) -> None:
    assert SHARED is not None
    task = load(SHARED / name)
    check(task)
    sizes = [len(task.train), len(task.validation), len(task.test)]
    assert min(sizes) >= 8 and sizes[0] <= 40 and sizes[1] <= 100 and sizes[2] <= 250


@pytest.mark.skipif(SHARED is None, reason="the data is not on this machine")
@pytest.mark.parametrize(
    ("name", "fields", "metric"),
    [
        ("banking77", "text -> category: one of 77", ExactMatch("category")),
        ("gsm8k", "question -> answer", Number()),
        ("facility_support", "input -> answer: Answer", JsonFields()),
        ("bbh/date_understanding.json", "question -> answer", Choice()),
        ("bbh/navigate.json", "question -> answer", Choice()),
        ("bbh/object_counting.json", "question -> answer", Number()),
        ("bigbench/object_counting.json", "question -> answer", Number()),
        ("bigbench/navigate.json", "question -> answer", ExactMatch()),
        ("instruction_induction/induce/sentiment.json", "input -> output: one of 2", ExactMatch("output")),
        ("instruction_induction/induce/first_word_letter.json", "input -> output", ExactMatch("output")),
        ("instruction_induction/induce/larger_animal.json", "input -> output", ExactMatch("output")),
    ],
)
def test_real_data_becomes_what_one_would_expect(name: str, fields: str, metric: object) -> None:
    assert SHARED is not None
    task = load(SHARED / name)
    assert (task.fields, task.metric) == (fields, metric)
    if name == "gsm8k":
        assert all("####" in e.solution and "####" not in e.answer for e in everything(task))


# --- what public data sets are like ---


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (lambda k: {"question": f"q{k}", "answer": f"a{k}", "label": k % 2}, "question, answer -> label: one of 2"),
        (lambda k: {"question_text": f"q{k}", "target": k % 2}, "question_text -> target: one of 2"),
        (lambda k: {"sQuestion": f"q{k}", "lSolutions": [k / 4]}, "sQuestion -> lSolutions"),
        (lambda k: {"context": "c", "question": f"q{k}", "answerA": "x", "answerB": "y", "label": 1 + k % 2},
         "context, question, options -> label"),
        (lambda k: {"claim": f"c{k}", "evidence": [[[k, "p"]]], "label": "NY"[k % 2]}, "claim -> label: one of 2"),
        (lambda k: {"QUESTION": f"q{k}", "CONTEXTS": ["c"], "LABELS": ["B"], "final_decision": ("yes", "no")[k % 2]},
         "QUESTION, CONTEXTS: list[str] -> final_decision: one of 2"),
        (lambda k: {"Question": f"q{k}", "Best Answer": f"b{k}", "Correct Answers": f"b{k}; c"},
         "Question -> Best_Answer"),
        (lambda k: {"choices": ["x", "y"], "stem": f"s{k}", "answerKey": "AB"[k % 2]}, "stem, choices -> answerKey"),
        (lambda k: {"question": f"q{k}", "context": {"t": ["c"]} if k % 2 else None, "answer": f"a{k}"},
         "question, context: dict[str, Any] | None -> answer"),
        (lambda k: {"text": f"t{k}", "stars": float(k % 5)}, "text -> stars: one of 5"),
    ],
)  # fmt: skip
def test_columns_of_public_data(tmp_path: Path, row: Any, fields: str) -> None:
    task = load(write(tmp_path / "data.json", [row(k) for k in range(N)]))
    assert task.fields == fields
    check(task)


def test_scores_are_judged_by_their_distance(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a{k}", "sentence2": "b", "score": k / 7} for k in range(36)]
    task = load(write(tmp_path / "data.json", rows))
    assert task.metric == Near("score", span=5.0)
    check(task)
    example = dspy.Example(score="2.5", accepted=("2.5",)).with_inputs()
    for said, score in (("2.5", 1.0), ("about 3.5", 0.8), ("none", 0.0), ("99", 0.0)):
        assert Metric(task.metric).call(example, dspy.Prediction(score=said))[0] == pytest.approx(score)


def test_tags_of_words_are_judged_place_by_place(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b", str(k)], "ner_tags": ["O", "B", "O"]} for k in range(N)]
    task = load(write(tmp_path / "data.json", rows), inputs="tokens", outputs="ner_tags")
    assert task.metric == InOrder("ner_tags")
    check(task)
    for said, score in ((["O", "O", "B"], 1 / 3), (["O"], 1 / 3), (["O", "B", "O", "O"], 3 / 4), ("O, B, O", 1.0)):
        assert Metric(task.metric).call(task.train[0], dspy.Prediction(ner_tags=said))[0] == pytest.approx(score)


def test_sentences_in_own_words_are_judged_by_their_words(tmp_path: Path) -> None:
    said = [{"question": f"q{k}?", "answer": f"Nothing at all happens with {k}."} for k in range(N)]
    assert isinstance(load(write(tmp_path / "data.json", said)).metric, TokenF1)
    turned = [{"input": f"The dog number {k} saw the cat.", "output": f"The cat saw the dog {k}."} for k in range(N)]
    assert isinstance(load(write(tmp_path / "turned.json", turned)).metric, ExactMatch)


def test_a_few_answers_that_are_no_option_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"question": f"q{k}", "options": ["x", "y", "z"], "answer": "AC" if k == 5 else "B"} for k in range(40)]
    rows[7]["answer"] = "C"
    task = load(write(tmp_path / "data.json", rows))
    assert {e.answer for e in everything(task)} == {"(B)", "(C)", "AC"} and task.metric == Choice()
    check(task)


def test_wrong_answers_in_columns_of_their_own_become_options(tmp_path: Path) -> None:
    wrong = [f"Incorrect Answer {n}" for n in (1, 2, 3)]
    rows = [{"Question": f"q{k}", "Correct Answer": f"{k}", **{w: f"{k}{w[-1]}" for w in wrong}} for k in range(N)]
    task = load(write(tmp_path / "data.json", rows))
    assert (task.signature, task.metric) == ("Question, options -> Correct_Answer", Choice("Correct_Answer"))
    assert {e.Correct_Answer for e in everything(task)} == {"(A)", "(B)", "(C)", "(D)"}
    check(task)


def test_big_bench_prefers_the_score_that_the_task_prefers(tmp_path: Path) -> None:
    scores = {"Yes": 1, "No": 0}
    rows = [{"input": f"q{k}", "target": f"Yes. For {k} it is.", "target_scores": scores} for k in range(N)]
    for preferred, answer in (("multiple_choice_grade", "Yes"), ("bleu", "Yes. For 3 it is.")):
        data = {"preferred_score": preferred, "append_choices_to_input": False, "examples": rows}
        task = load(write(tmp_path / "task.json", data))
        assert answer in {e.answer for e in everything(task)}


def test_rows_that_ask_the_same_are_told(tmp_path: Path) -> None:
    rows = [{"question": f"Who is {k}?", "answer": f"Nobody {k}"} for k in range(20)]
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (*rows, *rows[:5])))
    with pytest.warns(UserWarning, match=r"left out 5 of 25 rows, which ask what an earlier one asks$"):
        load(path)
    path.write_text("\n".join(json.dumps(row) for row in (*rows, {**rows[0], "answer": "Somebody"})))
    with pytest.warns(UserWarning, match=r"left out 1 of 21 rows.*; 1 of the questions have different answers"):
        load(path)
