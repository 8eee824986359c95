"""Several sources as one: every row once or by weight, the same every time, in parts as in the whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqa_grpo import config
from vqa_grpo.config import Data
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.record import Record
from vqa_grpo.data import source as source_module
from vqa_grpo.data.source import WHOLE, Part, Row, Source, Unreadable, rows_of
from vqa_grpo.data.sources import open_source
from vqa_grpo.data.sources.mix import Component, mixed


def source_of(exact: bool = True, **splits: int) -> Source:
    """A source of so many numbered rows; its estimate is wrong where it is one."""

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        rows: Iterator[Row] = (
            Record(b"x", f"{split} {number}", "a", id=f"{number}") for number in range(splits[split])
        )
        return rows_of(rows, part)

    return Source("x", "print", {split: count if exact else count + 3 for split, count in splits.items()}, read, exact)


def ids(source: Source, split: str = "train", part: Part = WHOLE) -> list[str]:
    found = list(source.read(split, part))
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    return [row.id for _, row in found]


def test_without_weights_the_sources_follow_each_other_whole() -> None:
    made = mixed([Component("a", source_of(train=2, test=1)), Component("b", source_of(train=3, validation=1))])
    assert made.rows == {"train": 5, "validation": 1, "test": 1}
    assert ids(made) == ["a/0", "a/1", "b/0", "b/1", "b/2"]
    assert (ids(made, "validation"), ids(made, "test")) == (["b/0"], ["a/0"])


def test_weights_set_the_shares_of_train_until_the_first_source_runs_out() -> None:
    made = mixed([Component("a", source_of(train=100), 3.0), Component("b", source_of(train=10), 1.0)])
    found = ids(made)
    assert Counter(name[0] for name in found) == {"a": 33, "b": 10}
    assert found[:8] == ["a/0", "a/1", "a/2", "b/0", "a/3", "a/4", "a/5", "b/1"]
    assert made.rows == {"train": 43}


def test_weights_leave_held_out_rows_alone() -> None:
    made = mixed([Component("a", source_of(train=9, test=7), 1.0), Component("b", source_of(train=9, test=2), 8.0)])
    assert (made.rows["test"], len(ids(made, "test"))) == (9, 9)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (7.0, 3.0), (70.0, 30.0)])
def test_only_the_proportion_of_weights_counts(weights: tuple[float, float]) -> None:
    made = mixed([Component(name, source_of(train=700), w) for name, w in zip("ab", weights, strict=True)])
    assert Counter(name[0] for name in ids(made)) == {"a": 700, "b": 300}


def test_a_row_names_its_source_and_keeps_the_one_it_has() -> None:
    own, broken = Record(b"", "q", "a", source="own", id="1"), Unreadable("2", "no")
    rows: list[Row] = [own, replace(own, source=""), broken]
    one = Source("x", "", {"train": 3}, lambda split, part: rows_of(iter(rows), part))
    found = [row for _, row in mixed([Component("a", one)]).read("train", WHOLE)]
    assert found == [replace(own, id="a/1"), replace(own, source="a", id="a/1"), Unreadable("a/2", "no")]


def test_the_fingerprint_covers_each_source_its_weight_and_its_columns() -> None:
    one = Component("a", source_of(train=1), 1.0, {})
    others = [
        one._replace(name="b"),
        one._replace(weight=2.0),
        one._replace(columns={"question": "q"}),
        one._replace(source=replace(one.source, fingerprint="other")),
    ]
    prints = [mixed([part]).fingerprint for part in [one, *others]] + [mixed([one, others[0]]).fingerprint]
    assert len(set(prints)) == 6
    assert mixed([one]).fingerprint == prints[0]


COMPONENTS = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([0.1, 0.25, 1.0, 1 / 3, 3.0, 17.0]), st.booleans()),
    min_size=1,
    max_size=4,
)


@given(COMPONENTS, st.booleans(), st.integers(1, 4), st.integers(0, 80))
@settings(max_examples=200)
def test_the_parts_of_a_mixture_are_the_whole(
    parts: list[tuple[int, float, bool]], weighted: bool, count: int, limit: int
) -> None:
    made = mixed(
        [
            Component(f"{index}", source_of(exact, train=rows), weight if weighted else 0.0)
            for index, (rows, weight, exact) in enumerate(parts)
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "BLOCK", 7)
        whole = list(made.read("train", WHOLE))
        in_parts = [row for index in range(count) for row in made.read("train", Part(index, count, limit))]
    assert [number for number, _ in whole] == list(range(len(whole)))
    assert sorted(in_parts, key=lambda row: row[0]) == (whole[:limit] if limit else whole)
    if made.exact:
        assert made.rows == {"train": len(whole)}
    if not weighted:
        assert len(whole) == sum(rows for rows, _, _ in parts)
    else:  # at least one source is used up, and none is ahead of its share by more than a row
        used = Counter(row.id.split("/")[0] for _, row in whole)
        assert any(used[f"{index}"] == rows for index, (rows, _, _) in enumerate(parts))
        times = [used[f"{index}"] / weight for index, (_, weight, _) in enumerate(parts)]
        assert max(times) <= min(times) + 1.01 / min(weight for _, weight, _ in parts)


# --- the configuration ------------------------------------------------------------------------------------------


def jsonl(*numbers: int) -> bytes:
    return b"".join(b'{"image": "", "q": "%d?", "answer": "a"}\n' % number for number in numbers)


def test_a_mixture_is_opened_from_the_configuration(on_disk: Callable[..., str], tmp_path: Any) -> None:
    place = on_disk({"a.jsonl": jsonl(1, 2), "b.jsonl": jsonl(3).replace(b'"q"', b'"question"')})
    mix = [{"source": f"{place}/a.jsonl", "columns": {"question": "q"}, "name": "one"}, {"source": f"{place}/b.jsonl"}]
    setting = [f"data.mix={json.dumps([*mix, {'source': 'builtin:x'}])}"]
    data = config.load("", setting).data
    assert data.source == ""
    built_in = source_of(train=1)
    made = open_source(data, lambda name: {"builtin:x": built_in}[name])
    assert made.name == "one + b.jsonl + x"
    assert [row.id for row in made.records("train")] == [
        "one/train/00000000",
        "one/train/00000001",
        "b.jsonl/train/00000000",
        "x/0",
    ]
    assert Data(**data.model_dump(mode="json")) == data


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.mix=[{source: a, weight: 1}, {source: b}]"], "give every one a weight, or none"),
        (["data.mix=[{source: x/a}, {source: y/a}]"], "two sources called 'a': give them a name each"),
        (["data.mix=[{source: a}]", "data.source=b"], "both source 'b' and mix are given"),
        (["data.mix=[{sorce: a}]"], "unknown key data.mix.0.sorce, did you mean source?"),
        (["data.mix=[{source: a, weight: -1}]"], "data.mix.0.weight"),
        (["data.mix=[{source: a, name: x/y}]"], "data.mix.0.name"),
        (["data.source="], "source"),
        (["data.source=''"], "source is empty"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_in_one_line(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.load("", settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_configurations_built_in_source_gives_way_to_a_mixture() -> None:
    assert config.load("quickstart", ["data.mix=[{source: a}]"]).data.source == ""
