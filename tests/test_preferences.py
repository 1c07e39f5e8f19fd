"""Preference data: the three schemas, written to local files and read by the real `datasets` library, offline."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from cuesmith.programs.tasks import TaskError
from cuesmith.programs.tasks.preferences import (
    HELPSTEER_WEIGHTS,
    Preference,
    load_preferences,
    load_prompts,
    prompts,
)

datasets = pytest.importorskip("datasets")

Row = Mapping[str, object]


def jsonl(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: Iterable[Row]) -> Path:
    datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(str(path))
    return path


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]


def ultrafeedback(number: int, good: float = 8.0, bad: float = 3.5) -> Row:
    asked = f"question {number}?"
    return {
        "prompt": asked,
        "prompt_id": f"id{number}",
        "chosen": talk(asked, f"good {number}"),
        "rejected": talk(asked, f"bad {number}"),
        "messages": talk(asked, f"good {number}"),
        "score_chosen": good,
        "score_rejected": bad,
    }


def helpsteer(prompt: str, response: str, *scores: int) -> Row:
    return {"prompt": prompt, "response": response, **dict(zip(HELPSTEER_WEIGHTS, scores, strict=True))}


ORCA = {"system": "Think.", "question": "2 + 2?", "chosen": "4", "rejected": "5"}


def test_ultrafeedback_from_parquet(tmp_path: Path) -> None:
    file = parquet(tmp_path / "u.parquet", [ultrafeedback(n) for n in range(3)])
    pairs = load_preferences(file, cache_dir=tmp_path / "cache")
    assert sorted(pairs, key=lambda p: p.prompt)[1] == Preference("question 1?", "good 1", "bad 1", 4.5)
    assert len(pairs) == 3 and sorted(prompts(pairs)) == [f"question {n}?" for n in range(3)]


def test_pairs_that_prefer_nothing_are_left_out(tmp_path: Path) -> None:
    tie, reversed_, same = ultrafeedback(1, 5.0, 5.0), ultrafeedback(2, 1.0, 5.0), dict(ultrafeedback(3))
    same["rejected"] = same["chosen"]
    file = jsonl(tmp_path / "u.jsonl", [tie, reversed_, same, ultrafeedback(4), ultrafeedback(4)])
    assert [p.prompt for p in load_preferences(file, cache_dir=tmp_path / "cache")] == ["question 4?"]


def test_helpsteer_pairs_by_weighted_score(tmp_path: Path) -> None:
    rows = [
        helpsteer("a", "right", 4, 4, 4, 2, 2),
        helpsteer("a", "wrong", 4, 0, 4, 2, 2),
        helpsteer("a", "long and right", 4, 4, 4, 2, 4),
        helpsteer("a", "also right", 4, 4, 4, 2, 2),
        helpsteer("b", "alone", 4, 4, 4, 4, 0),
    ]
    file = jsonl(tmp_path / "h.jsonl", rows)
    found = {(p.chosen, p.rejected): p.margin for p in load_preferences(file, cache_dir=tmp_path / "cache")}
    assert found == {
        ("right", "wrong"): pytest.approx(3.2),  # 4 x 0.8
        ("right", "long and right"): pytest.approx(0.8),  # 2 x 0.4 for verbosity
        ("also right", "wrong"): pytest.approx(3.2),
        ("also right", "long and right"): pytest.approx(0.8),
        ("long and right", "wrong"): pytest.approx(2.4),
    }
    verbose = dict.fromkeys(HELPSTEER_WEIGHTS, 0.0) | {"verbosity": 1.0}
    chosen = {p.chosen for p in load_preferences(file, weights=verbose, cache_dir=tmp_path / "cache")}
    assert chosen == {"long and right"}


def test_orca_from_a_folder_of_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "orca"
    folder.mkdir()
    parquet(folder / "a.parquet", [ORCA])
    parquet(folder / "b.parquet", [{**ORCA, "system": "", "question": "3 + 3?", "chosen": "6"}])
    pairs = load_preferences(folder, cache_dir=tmp_path / "cache")
    assert set(pairs) == {Preference("Think.\n\n2 + 2?", "4", "5"), Preference("3 + 3?", "6", "5")}
    assert set(load_prompts(folder, cache_dir=tmp_path / "cache")) == {"Think.\n\n2 + 2?", "3 + 3?"}


def test_prompts_alone_and_a_json_array(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]))
    assert sorted(load_prompts(file, cache_dir=tmp_path / "cache")) == ["a", "b"]
    with pytest.raises(TaskError, match="no known preference data; there are: prompt; expected"):
        load_preferences(file, cache_dir=tmp_path / "cache")


def test_size_and_seed_do_not_depend_on_the_order(tmp_path: Path) -> None:
    rows = [ultrafeedback(n) for n in range(30)]
    first = jsonl(tmp_path / "one.jsonl", rows)
    random.Random(1).shuffle(rows)
    second = jsonl(tmp_path / "two.jsonl", rows)
    cache = tmp_path / "cache"
    taken = load_preferences(first, size=7, seed=3, cache_dir=cache)
    assert len(taken) == 7
    assert load_preferences(second, size=7, seed=3, cache_dir=cache) == taken
    assert load_preferences(first, size=7, seed=4, cache_dir=cache) != taken
    assert load_preferences(first, size=8, seed=3, cache_dir=cache)[:7] == taken


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"instruction": "a", "output": "b"}], "there are: instruction, output; expected prompt, chosen"),
        ([{"prompt": "a", "response": "b", "helpfulness": 1}], "there are: helpfulness, prompt, response"),
        ([{**ultrafeedback(1), "chosen": talk("a", "b")[:1]}], "row 0: 'chosen' does not end with a message of the"),
        ([ORCA, {**ORCA, "chosen": None}], "row 1: 'chosen' is missing or empty"),
        ([{**ORCA, "question": "  "}], "row 0: 'question' is missing or empty"),
        ([helpsteer("a", "b", 1, 1, 1, 1, 1), {**helpsteer("a", "c", 1, 1, 1, 1, 1), "coherence": None}],
         "row 1: 'coherence' must be a number, got None"),
        ([{"prompt": 3, "chosen": "a", "rejected": "b"}], "row 0: 'prompt' is a int; a text is needed"),
        ([{**ORCA, "rejected": "4"}], "no pair of a better and a worse response"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_line(tmp_path: Path, rows: list[Row], problem: str) -> None:
    file = jsonl(tmp_path / "x.jsonl", rows)
    with pytest.raises(TaskError) as raised:
        load_preferences(file, cache_dir=tmp_path / "cache")
    assert problem in str(raised.value) and "x.jsonl" in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "a.csv").write_text("prompt\na\n")
    with pytest.raises(TaskError, match=r"a\.csv: expected a file, or files of one kind, that end in \.json"):
        load_preferences(tmp_path / "a.csv", cache_dir=cache)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"\n')
    with pytest.raises(TaskError, match=r"broken\.jsonl"):
        load_preferences(tmp_path / "broken.jsonl", cache_dir=cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="empty: expected a file"):
        load_prompts(tmp_path / "empty", cache_dir=cache)


def test_a_data_set_of_the_hub_without_network(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"^nvidia/HelpSteer\[train\]: "):
        load_preferences("helpsteer", cache_dir=tmp_path / "cache")
