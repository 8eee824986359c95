"""The one completion parser: its outcomes, what stays usable, and that nothing makes it slow or raise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.completion import FORMAT_REWARD, MAX_BYTES, MAX_DEPTH, Outcome, parse

GOOD = '{"reasoning_steps": ["A red circle is shown."], "answer": "red"}'
# White space to Python but not to JSON, zero-width characters, a mark alone, letters and symbols without ink.
UNSEEN = ["\xa0", "\x1f", "\u2028", "\u200b", "\u200d\ufe0f", "\ufeff", "\u0301", "\u034f", *"\u115f\u3164\uffa0\u2800"]
TOO_DEEP = '{"x": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}"
TRUNCATABLE = '{"reasoning_steps": ["a\\u00e9\\n", "{b}"], "answer": "c\\"d", "x": [1.5e3, true, null, -2]}'


def made(steps: object = ("s",), answer: object = "a", **extra: object) -> str:
    return json.dumps(
        {"reasoning_steps": list(steps) if isinstance(steps, tuple) else steps, "answer": answer, **extra}
    )


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f" \n{GOOD}\t\n",
        '{"answer": "red", "reasoning_steps": ["s"]}',
        '{"answer":"1","reasoning_steps":["s"]}',
        '{"reasoning_steps": ["\\\\frac{1}{2} } { \\" ["], "answer": "}"}',
        '{"reasoning_steps": ["NaN, \'x\', // no comment"], "answer": "{\\"answer\\": 1}"}',
        '{"reasoning_steps": ["s"], "answer": "\\ud83d\\ude00"}',
        made(("é", "日本", "😀"), "😀"),
        made(("s",) * 32),
        made(("w " * 64,)),
        made(("s",), "a" * 512),
    ],
)
def test_the_contract_alone_gets_full_marks(text: str) -> None:
    parsed = parse(text)
    assert (parsed.outcome, parsed.format_reward, parsed.binary_format_reward, parsed.reasons) == (
        "valid",
        1.0,
        1.0,
        (),
    )
    assert (parsed.answer, list(parsed.steps)) == (json.loads(text)["answer"], json.loads(text)["reasoning_steps"])


@pytest.mark.parametrize(
    ("text", "outcome", "code", "usable"),
    [
        (f"```json\n{GOOD}\n```", "wrapped", "code_fence", True),
        (f"```\n{GOOD}\n```", "wrapped", "code_fence", True),
        (f"Sure: {GOOD}", "wrapped", "text_around", True),
        (f"{GOOD} Done.", "wrapped", "text_around", True),
        (f"[{GOOD}]", "wrapped", "text_around", True),
        (f"The set {{1, 2}} and {{x}}: {GOOD}", "wrapped", "text_around", True),
        (f"\\frac{{1}}{{2}} {GOOD}", "wrapped", "text_around", True),
        (f'{{"a quote in prose {GOOD}', "wrapped", "text_around", True),
        (f"{{{GOOD}}}", "wrapped", "text_around", True),
        (f'{{"n": 1}} {GOOD}', "wrapped", "other_objects", True),
        (f'{GOOD} {{"reasoning_steps": ["and', "wrapped", "text_around", True),
        (made(note=1), "extra_keys", "extra_keys", True),
        (made(note={"deep": [1, {}]}), "extra_keys", "extra_keys", True),
        (f"Sure: {made(note=1)}", "extra_keys", "text_around", True),
        (made(("s",) * 33), "too_large", "too_many_steps", True),
        (made(("x" * 513,)), "too_large", "long_step", True),
        (made(("w " * 65,)), "too_large", "long_step", True),
        (made(("s",), "a" * 513), "too_large", "long_answer", False),
        (made(("s" * 70_000,)), "oversized", "oversized", False),
        (GOOD + " " * MAX_BYTES, "oversized", "oversized", False),
        (f"{{{'z' * MAX_BYTES}{GOOD}", "oversized", "oversized", False),
        (made(x=1)[:-2] + "[" * 5000 + "]" * 5000 + "}", "oversized", "too_deep", False),
        (TOO_DEEP, "oversized", "too_deep", False),
        (made(x=1)[:-2] + "[" * 50_000 + "]" * 50_000 + "}", "oversized", "oversized", False),
        ('Use {" as opener. {}', "fields", "text_around", False),
        (f'Use {{ " as opener. {GOOD}', "wrapped", "text_around", True),
        *((f"{blank}{GOOD}", "wrapped", "text_around", True) for blank in UNSEEN),
        *((f"{GOOD}{blank}\n", "wrapped", "text_around", True) for blank in UNSEEN),
        ("{}", "fields", "no_steps", False),
        ('{"answer": "red"}', "fields", "no_steps", False),
        ('{"reasoning_steps": ["s"]}', "fields", "no_answer", False),
        (made([]), "fields", "no_steps", False),
        (made("s"), "fields", "steps_type", False),
        (made([1, None]), "fields", "step_type", False),
        (made(["s", None]), "fields", "step_type", False),
        (made(["s", " \n"]), "fields", "empty_step", False),
        *((made([blank]), "fields", "empty_step", False) for blank in UNSEEN),
        *((made(("s",), blank), "fields", "empty_answer", False) for blank in UNSEEN),
        (made(("s",), ""), "fields", "empty_answer", False),
        (made(("s",), " "), "fields", "empty_answer", False),
        (made(("s",), 3), "fields", "answer_type", False),
        (made(("s",), ["B"]), "fields", "answer_type", False),
        (made(("s",), None), "fields", "no_answer", False),
        ('{"reasoning_steps": ["s"], "answer": ' + "9" * 5000 + "}", "fields", "answer_type", False),
        ('{"reasoning_steps": ["s"], "answer": "\\ud800"}', "fields", "lone_surrogate", False),
        ('{"reasoning_steps": ["\ud800"], "answer": "a"}', "fields", "lone_surrogate", False),
        (f'{{"result": {GOOD}}}', "fields", "extra_keys", False),
        ('{"reasoning_steps": ["s"], "answer": "a", "answer": "b"}', "duplicate_keys", "duplicate_keys", False),
        ('{"x": 1, "reasoning_steps": ["s"], "x": 2, "answer": "a"}', "duplicate_keys", "duplicate_keys", False),
        (GOOD + GOOD, "several", "several_objects", False),
        (f'{GOOD}\n{{"answer": "blue"}}', "several", "several_objects", False),
        (f"[{GOOD}, {GOOD}]", "several", "several_objects", False),
    ],
)
def test_an_imperfect_object_earns_part_of_the_marks_under_its_own_name(
    text: str, outcome: str, code: str, usable: bool
) -> None:
    parsed = parse(text)
    assert (parsed.outcome.value, code in parsed.codes, parsed.answer is not None) == (outcome, True, usable), parsed
    assert 0 < parsed.format_reward < 1
    assert all(": " in reason for reason in parsed.reasons)


@pytest.mark.parametrize(
    ("text", "outcome", "code"),
    [
        ("", "no_json", "empty"),
        (" \n", "no_json", "empty"),
        ("It looks red.", "no_json", "no_object"),
        ("[1, 2]", "no_json", "no_object"),
        ("x" * 100_000, "no_json", "oversized"),
        ('{"answer": "' + "x" * 100_000, "truncated", "oversized"),
        (f'{{"a": 1,}}{"x" * 100_000}', "malformed", "oversized"),
        ("\u3164\xa0", "no_json", "no_object"),
        ('{"reasoning_steps": ["s"], "answer": "a",}', "malformed", "trailing_comma"),
        ('{"reasoning_steps": ["s",], "answer": "a"}', "malformed", "trailing_comma"),
        ("{'reasoning_steps': ['s'], 'answer': 'a'}", "malformed", "single_quotes"),
        ('{"reasoning_steps": [\'s\'], "answer": "a"}', "malformed", "single_quotes"),
        ('{"reasoning_steps": ["s"], "answer": NaN}', "malformed", "not_a_number"),
        ('{"reasoning_steps": ["s"], "answer": "a", "x": -Infinity}', "malformed", "not_a_number"),
        ('{"reasoning_steps": ["s"], // why\n "answer": "a"}', "malformed", "comment"),
        ('{"reasoning_steps": ["s\nt"], "answer": "a"}', "malformed", "control_character"),
        ('{"reasoning_steps": ["\\q"], "answer": "a"}', "malformed", "bad_escape"),
        ('{"reasoning_steps": ["s"] "answer": "a"}', "malformed", "syntax"),
        ('{"reasoning_steps": ["s"], "answer": 01}', "malformed", "syntax"),
        ("{", "truncated", "unfinished_object"),
        (GOOD[:-1], "truncated", "unfinished_object"),
        (f"Sure: {GOOD[:30]}", "truncated", "unfinished_object"),
        ('{"answer": "the empty set {} is', "truncated", "unfinished_object"),
        ('{"a": {"reasoning_steps": ["s"], "answer": "a"}', "truncated", "unfinished_object"),
    ],
)
def test_no_complete_object_earns_nothing_and_gives_nothing(text: str, outcome: str, code: str) -> None:
    parsed = parse(text)
    assert (parsed.outcome.value, parsed.format_reward, parsed.answer, parsed.steps) == (outcome, 0.0, None, ())
    assert code in parsed.codes, parsed


@pytest.mark.parametrize("length", range(1, len(TRUNCATABLE)))
def test_an_object_cut_anywhere_is_truncated(length: int) -> None:
    assert parse(TRUNCATABLE[:length]).outcome is Outcome.TRUNCATED


@pytest.mark.parametrize(
    "text",
    [
        *("", "It is red.", GOOD, f"Sure: {GOOD}", made(note=1), made(("s",) * 33), "{}", 'a {" b {}', GOOD + GOOD),
        *('{"answer": "a", "answer": "b"}', TOO_DEEP, GOOD[:-1], '{"a": 1,}', "{'a': 1}"),
    ],
)
@pytest.mark.parametrize("padding", [" ", "\u3164", "x", "{", "[", "\n", "\\"])
def test_padding_beyond_the_limit_never_pays_and_never_hides_that_there_is_an_object(text: str, padding: str) -> None:
    plain = parse(text).format_reward
    for padded in (text + padding * MAX_BYTES, padding * MAX_BYTES + text):
        reward = parse(padded).format_reward
        assert reward <= plain
        assert (reward > 0) == (plain > 0)


def test_the_limits_on_steps_take_the_steps_and_leave_the_answer() -> None:
    parsed = parse(made(("s",) * 33, "red"))
    assert (parsed.answer, parsed.steps) == ("red", ())


def test_the_binary_reward_pays_for_the_contract_in_prose_too_and_for_nothing_less() -> None:
    for text, reward in ((GOOD, 1.0), (f"Sure: {GOOD}", 1.0), (made(note=1), 0.0), ("{}", 0.0), ("red", 0.0)):
        assert parse(text).binary_format_reward == reward


def test_every_outcome_has_a_grade_and_only_valid_has_the_full_one() -> None:
    assert set(FORMAT_REWARD) == set(Outcome)
    assert [outcome for outcome, reward in FORMAT_REWARD.items() if reward == 1.0] == [Outcome.VALID]


@pytest.mark.parametrize("outcome", [outcome for outcome, reward in FORMAT_REWARD.items() if reward > 0])
def test_what_is_read_no_further_gets_the_lowest_grade_of_an_object(outcome: Outcome) -> None:
    assert FORMAT_REWARD[Outcome.OVERSIZED] <= FORMAT_REWARD[outcome]


UNITS = [
    "{",
    '{"a":',
    "[",
    '"',
    "\\",
    '{"',
    '{"{',
    "{ ",
    "{}",
    '{"a":1,',
    '{"a" x',
    '{\\"',
    '{"\\',
    '{"a":{}x',
    "9",
    "\ud800",
]


@pytest.mark.timeout(120)  # milliseconds in linear time; quadratic time would be many minutes
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("size", [65_000, 1_000_000])
def test_a_megabyte_of_anything_is_read_in_linear_time(unit: str, size: int) -> None:
    bomb = unit * (size // len(unit))
    for text in (bomb, GOOD[:-1] + bomb, f"x {bomb} }}"):
        assert 0.0 <= parse(text).format_reward <= 1.0


pieces = st.sampled_from(
    [*'{}[]",:\\ ', '{"', '"answer":', '"reasoning_steps":', '["s"]', '"a"', "NaN", "1", GOOD, "\n", "\ud800"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.one_of(st.text(), st.lists(pieces, max_size=25).map("".join)))
def test_nothing_makes_the_parser_raise_and_every_result_is_consistent(text: str) -> None:
    parsed = parse(text)
    assert 0.0 <= parsed.format_reward <= 1.0
    assert (parsed.outcome is Outcome.VALID) == (not parsed.reasons)
    assert parsed.answer is None or parsed.answer.strip()
    assert not parsed.steps or (parsed.answer is not None and all(step.strip() for step in parsed.steps))
    "; ".join((parsed.answer or "", *parsed.steps, *parsed.reasons)).encode()  # all of it can be logged


@given(
    st.text(st.characters(exclude_characters="{"), max_size=20),
    st.dictionaries(st.text(max_size=5), json_values),
    st.text(),
)
def test_a_complete_object_is_found_in_any_text_that_opens_no_other(
    before: str, value: dict[str, object], after: str
) -> None:
    assert parse(before + json.dumps(value) + after).format_reward > 0


@given(st.lists(pieces, max_size=12).map("".join))
def test_full_marks_need_what_pythons_own_decoder_reads_as_the_contract(text: str) -> None:
    if parse(text).outcome is Outcome.VALID:
        value = json.loads(text)
        assert set(value) == {"reasoning_steps", "answer"}
        assert value["reasoning_steps"]
