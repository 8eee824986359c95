from __future__ import annotations

import pytest

from vqa_grpo.contract.record import Record
from vqa_grpo.quickstart import easy_vqa


@pytest.fixture(scope="session")
def train() -> list[Record]:
    return list(easy_vqa.records("train"))


@pytest.fixture(scope="session")
def test() -> list[Record]:
    return list(easy_vqa.records("test"))
