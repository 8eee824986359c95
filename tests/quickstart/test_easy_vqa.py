from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Part
from vqa_grpo.quickstart import easy_vqa


def test_every_row_and_every_picture_of_the_package_is_there(train: list[Record], test: list[Record]) -> None:
    assert {"train": len(train), "test": len(test)} == easy_vqa.ROWS
    assert (len(train), len({row.image for row in train})) == (38_575, 4_000)
    assert (len(test), len({row.image for row in test})) == (9_673, 1_000)


def test_no_picture_is_in_both_splits(train: list[Record], test: list[Record]) -> None:
    assert not {row.image for row in train} & {row.image for row in test}


def test_ids_are_row_numbers(train: list[Record], test: list[Record]) -> None:
    assert [row.id for row in train[:2]] == ["easy-vqa/train/00000", "easy-vqa/train/00001"]
    assert test[-1].id == "easy-vqa/test/09672"
    assert len({row.id for row in [*train, *test]}) == len(train) + len(test)
    assert (train[17].question, train[17].answer) == ("is there not a teal shape?", "yes")


def test_pictures_keep_the_bytes_of_the_file(train: list[Record]) -> None:
    path = easy_vqa._data() / "train" / "images" / "3999.png"
    assert train[-1].image == path.read_bytes()


def test_each_row_names_its_kind_of_question_as_its_source(train: list[Record]) -> None:
    assert Counter(row.source for row in train) == {
        "easy-vqa/color": 5_166,
        "easy-vqa/shape": 5_002,
        "easy-vqa/yes-no": 14_187,
        "easy-vqa/yes-no-negated": 14_220,
    }


def test_train_rows_say_what_the_picture_shows_and_what_is_asked(train: list[Record]) -> None:
    assert train[0].answer == "rectangle"
    assert train[0].question == "what is the blue shape?"
    assert train[0].reference_steps == ("The image shows a blue rectangle.", "The question asks for the shape.")


def test_reference_steps_agree_with_the_answers_of_their_own_rows(train: list[Record]) -> None:
    for row in train:
        shown, asked = row.reference_steps
        assert asked.startswith("The question asks ")
        if row.source in ("easy-vqa/color", "easy-vqa/shape"):
            assert f" {row.answer}" in shown


def test_yes_and_no_follow_from_the_steps_alone(train: list[Record]) -> None:
    """An independent reading of the two sentences, wherever the first one is complete."""
    checked = 0
    for row in train:
        words = row.reference_steps[0].removesuffix(".").split()
        if not row.source.startswith("easy-vqa/yes-no") or len(words) != 6 or words[-1] == "shape":
            continue
        *_, topic, _, state = row.reference_steps[1].removesuffix(".").split()
        expected = (topic in words) == (state == "present")
        assert (row.answer == "yes") == expected, row.id
        checked += 1
    assert checked > 20_000


def test_test_rows_carry_nothing_that_was_made_from_answers(test: list[Record]) -> None:
    assert all(row.reference_steps == () for row in test)


def test_test_rows_stay_the_same_when_the_test_answers_are_lost(
    test: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "images").symlink_to(easy_vqa._data() / "test" / "images")
    questions = json.loads((easy_vqa._data() / "test" / "questions.json").read_text())
    blank = [(question, "", picture) for question, _, picture in questions]
    (tmp_path / "test" / "questions.json").write_text(json.dumps(blank))
    monkeypatch.setattr(easy_vqa, "_data", lambda: tmp_path)
    assert list(easy_vqa.records("test")) == [replace(row, answer="") for row in test]


def test_another_release_of_the_package_has_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(easy_vqa, "_data", lambda: tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "questions.json").write_text("[]")
    before = easy_vqa.fingerprint()
    assert before == easy_vqa.fingerprint()
    (tmp_path / "train" / "questions.json").write_text("[ ]")
    resized = easy_vqa.fingerprint()
    (tmp_path / "train" / "questions.json").rename(tmp_path / "train" / "renamed.json")
    assert len({before, resized, easy_vqa.fingerprint()}) == 3


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'vqa-grpo\[quickstart\]'"):
        next(easy_vqa.records("train"))


def test_the_source_needs_no_tensors() -> None:
    code = (
        "import sys; from vqa_grpo.quickstart import base, easy_vqa, recipes; next(easy_vqa.records('test')); "
        "print(sorted({'torch', 'numpy', 'transformers', 'easy_vqa'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_package_is_a_source_whose_parts_are_its_rows(train: list[Record], test: list[Record]) -> None:
    source = easy_vqa.source()
    assert (source.rows, source.exact, source.fingerprint) == (easy_vqa.ROWS, True, easy_vqa.fingerprint())
    assert list(source.records("test")) == test
    found = list(source.read("train", Part(1, 30, 32_000)))
    assert [number for number, _ in found] == [*range(1000, 2000), *range(31_000, 32_000)]
    assert [row for _, row in found] == [train[number] for number, _ in found]
