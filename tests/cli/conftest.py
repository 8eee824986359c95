from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

Ended = tuple[int, str, str]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run a verb in this process as the shell would: its exit code, output and error output."""
    from vqa_grpo.cli import main

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vqa-grpo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        said = capsys.readouterr()
        return (code if isinstance(code, int) else int(code is not None)), said.out, said.err

    return call


@pytest.fixture
def refused(cli: Callable[..., Ended]) -> Callable[..., str]:
    """Run a verb that must be refused with this exit code; returns the one line about it."""

    def call(code: int, *arguments: object) -> str:
        ended, out, err = cli(*arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, err
        assert "Traceback" not in out + err
        assert (ended, out) == (code, ""), err
        return errors[0]

    return call
