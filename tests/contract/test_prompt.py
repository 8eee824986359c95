"""Prompts: no question is lost, and a template that could never score is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract import prompt
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.record import Record, question_text

SHIPPED = sorted(path.stem for path in prompt.SHIPPED.glob("*.txt"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_template_asks_the_question_once(name: str) -> None:
    template = prompt.load(name)
    rendered = template.render("What is the brand?")
    assert rendered.count("What is the brand?") == 1
    assert prompt.PLACEHOLDER not in rendered
    assert '"reasoning_steps"' in rendered
    assert not rendered.endswith("\n")


@given(st.sampled_from(SHIPPED), st.text(max_size=50), st.lists(st.text(min_size=1, max_size=10), max_size=30))
def test_no_question_or_option_is_lost_or_changed(name: str, question: str, options: list[str]) -> None:
    template = prompt.load(name)
    before, _, after = template.text.partition(prompt.PLACEHOLDER)
    rendered = template.render(question, None, options)
    assert rendered == before + question_text(question, None, options) + after
    assert question in rendered
    assert all(f"{chr(ord('A') + n)}) {option}" in rendered for n, option in enumerate(options[:26]))


def test_braces_in_a_question_stay_as_they_are() -> None:
    assert "{0} {} %s {answer}" in prompt.load("vqa").render("{0} {} %s {answer}")


def test_choices_win_over_options_and_empty_ones_do_not_count() -> None:
    assert question_text("Q?", ["a"], ["b"]) == question_text("Q?", ["a"]) == question_text("Q?", [], ["a"])
    assert question_text("Q?", [], []) == question_text("Q?", None, None) == "Q?"
    assert Record(b"", "Q?", "a", choices=("x",), options=("y",)).offered() == ("x",)


@pytest.mark.parametrize("missing", [prompt.PLACEHOLDER, *prompt.KEYS])
def test_a_template_without_a_needed_part_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(prompt.load("vqa").text.replace(missing, ""))
    with pytest.raises(ConfigurationError) as caught:
        prompt.load(str(file))
    assert f"mine.txt lacks {missing}" in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-template", "nul\0name", ".", "", "x" * 5000])
def test_a_template_that_cannot_be_read_lists_the_shipped_ones(name: str) -> None:
    with pytest.raises(ConfigurationError, match="give a file, or one of short, vqa"):
        prompt.load(name)


def test_the_digest_is_that_of_the_words(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(prompt.load("vqa").text + "\n\n")
    assert prompt.load(str(file)).digest == prompt.load("vqa").digest
    file.write_text(prompt.load("vqa").text + " Please.")
    assert prompt.load(str(file)).digest != prompt.load("vqa").digest


@given(st.lists(st.sampled_from([prompt.PLACEHOLDER, *prompt.KEYS, " words "]), max_size=6).map("".join))
def test_any_text_is_a_template_or_refused_in_words(text: str) -> None:
    complete = all(part in text for part in (prompt.PLACEHOLDER, *prompt.KEYS))
    if complete:
        assert "question?" in prompt.check(text, "x").render("question?")
    else:
        with pytest.raises(ConfigurationError, match="lacks"):
            prompt.check(text, "x")
