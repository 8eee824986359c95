"""Progress: one report for a bar, a log and the program that runs the pipeline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.report import progress


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQA_GRPO_PROGRESS", "lines")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQA_GRPO_PROGRESS", raising=False)


@pytest.mark.usefixtures("lines")
def test_what_is_emitted_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    progress.emit("train", 3, 10, 'loss 0.5\n"quoted" ü')
    (line,) = capsys.readouterr().out.splitlines()
    assert progress.read(line) == {"task": "train", "done": 3, "total": 10, "note": 'loss 0.5\n"quoted" ü'}
    assert progress.read(f"   {line}") == progress.read(line)


@pytest.mark.usefixtures("lines")
def test_what_is_announced_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    progress.announce("convert", "failed", error="no\nrows")
    (line,) = capsys.readouterr().out.splitlines()
    assert progress.read_step(line) == {"step": "convert", "event": "failed", "error": "no\nrows"}
    assert progress.read(line) is None


@pytest.mark.usefixtures("alone")
def test_without_a_listener_only_people_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    progress.emit("train", 3, 10)
    progress.announce("convert", "done", rows=3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "convert: done (rows 3)\n"


@pytest.mark.usefixtures("lines")
def test_a_tracked_loop_yields_everything_and_ends_with_its_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track("abc", "loop", 3)) == ["a", "b", "c"]
    last = progress.read(capsys.readouterr().out.splitlines()[-1])
    assert last == {"task": "loop", "done": 3, "total": 3, "note": ""}


@pytest.mark.usefixtures("alone")
def test_a_log_file_gets_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Meter("convert", 0) as meter:
        meter.advance(5)
    assert capsys.readouterr().err.startswith("convert 5")


@pytest.mark.usefixtures("lines")
def test_a_loop_that_breaks_still_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress.Meter("loop", 9) as meter:
            meter.advance(4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    last = progress.read(capsys.readouterr().out.splitlines()[-1])
    assert last is not None
    assert last["done"] == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("t", 0, 10, 0.0), "t 0/10"),
        (("t", 0, 10, 5.0), "t 0/10"),
        (("t", 10, 10, 5.0), "t 10/10, 2.0/s"),
        (("t", 5, 0, 5.0), "t 5, 1.0/s"),
        (("t", 5, 10, 5.0, "loss 1"), "t 5/10, 1.0/s, 5 s left, loss 1"),
    ],
)
def test_a_line_in_words_says_only_what_is_known(arguments: tuple[object, ...], line: str) -> None:
    assert progress.describe(*arguments) == line  # type: ignore[arg-type]


JUNK = st.sampled_from(["", "{", "[]", "null", "1", '{"task": 1}', "[" * 100_000, '{"step": 1, "event": 2}'])


@given(st.sampled_from([progress.PREFIX, progress.STEP_PREFIX, "", " "]), JUNK | st.text(max_size=30))
def test_no_line_of_a_program_breaks_the_reader(prefix: str, rest: str) -> None:
    for read in (progress.read, progress.read_step):
        found = read(prefix + rest)
        assert found is None or isinstance(found, dict)


def test_lines_that_only_look_like_reports_are_not_reports() -> None:
    assert progress.read('@progress {"task": "x"}') is None
    assert progress.read('text @progress {"task": "x", "done": 1, "total": 2}') is None
    assert progress.read("@progress") is None
    assert progress.read_step('@step {"step": "x"}') is None


@pytest.mark.usefixtures("lines")
def test_a_long_transfer_is_shown_in_megabytes_and_a_short_one_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with progress.transferring("download") as show:
        show(5, 10)
        show(10, 10)
    assert capsys.readouterr().out == ""
    with progress.transferring("download") as show:
        show(50_000_000, 200_000_000)
        show(200_000_000, 200_000_000)
    reports = [progress.read(line) or {} for line in capsys.readouterr().out.splitlines()]
    assert [(report["done"], report["total"]) for report in reports][:2] == [(50, 200), (200, 200)]
