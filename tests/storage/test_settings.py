"""The variables that configure S3 reach both libraries, and what is asked for is what is sent."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storage_proxy import Proxy, between

from vqa_grpo.contract.failure import ConfigurationError, StepError
from vqa_grpo.storage import bulk, publish, store
from vqa_grpo.storage.store import open_store

MakeFolder = Callable[..., Path]
PART = 5 << 20


@pytest.fixture
def folder(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bulk, "PART", PART)
    return make_folder(files={"small": b"s", "big": os.urandom(PART + 1)})


def writes(proxy: Proxy) -> list[dict[str, str]]:
    """The headers of what begins an object: a put, or a multipart upload."""
    return [
        request.headers
        for request in proxy.requests
        if (request.method == "PUT" and "partNumber" not in request.path)
        or (request.method == "POST" and request.path.endswith("?uploads"))
    ]


def test_encryption_is_asked_for_with_every_write(
    proxied: tuple[Proxy, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, place = proxied
    # SeaweedFS has no key service: what is sent is looked at, and everything refused.
    proxy.restart(lambda request: "501")
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "alias/our-key")
    kept = open_store(place)
    for write in (
        lambda: kept.write("name", b"x"),
        lambda: kept.create("READY", b"x"),
        lambda: kept.upload("small", folder / "small", ""),
        lambda: kept.upload("big", folder / "big", ""),
    ):
        with pytest.raises(StepError):
            write()
    sent = writes(proxy)
    assert len(sent) >= 4
    for headers in sent:
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/our-key"


def test_without_variables_the_bucket_s_own_encryption_counts(proxied: tuple[Proxy, str], folder: Path) -> None:
    proxy, place = proxied
    publish.publish_folder(place, folder)
    assert len(writes(proxy)) >= 4
    assert not [name for headers in writes(proxy) for name in headers if "encryption" in name]


@pytest.mark.parametrize(
    ("algorithm", "key", "words"),
    [
        ("rot13", "", "AWS_SERVER_SIDE_ENCRYPTION is 'rot13': choose one of AES256, aws:kms"),
        ("sse-c", "", "AWS_SERVER_SIDE_ENCRYPTION is 'sse-c'"),
        ("AES256", "alias/x", "AWS_SSE_KMS_KEY_ID needs AWS_SERVER_SIDE_ENCRYPTION=aws:kms"),
        ("", "alias/x", "AWS_SSE_KMS_KEY_ID needs AWS_SERVER_SIDE_ENCRYPTION=aws:kms"),
    ],
)
def test_encryption_that_cannot_be_is_refused(
    s3: str, monkeypatch: pytest.MonkeyPatch, algorithm: str, key: str, words: str
) -> None:
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", algorithm)
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", key)
    with pytest.raises(ConfigurationError, match=words):
        open_store(f"{s3}/x").write("name", b"x")


def test_every_part_goes_with_its_checksum_and_below_the_bucket_s_path(
    proxied: tuple[Proxy, str], folder: Path
) -> None:
    proxy, place = proxied
    publish.publish_folder(place, folder)
    assert {request.path.split("/")[1].partition("?")[0] for request in proxy.requests} == {"vqa-grpo"}
    bodies = [r.headers for r in proxy.requests if r.method == "PUT" and f"{publish.ATTEMPT}" in r.path]
    assert len(bodies) == 4  # manifest, small, two parts of big
    assert all(any(name.startswith("x-amz-checksum-") for name in headers) for headers in bodies)


def test_the_endpoint_of_s3_alone_comes_before_that_of_all_services(
    s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store._client.cache_clear()
    place = f"{s3}/{tmp_path.name}/both"
    publish.publish_folder(place, folder)
    assert publish.fetch(place, tmp_path / "cache").is_dir()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    store._client.cache_clear()
    with pytest.raises(StepError, match=r"http://127\.0\.0\.1:9.*is AWS_ENDPOINT_URL_S3 right"):
        publish.find(place)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1")
    store._client.cache_clear()
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL_S3: Invalid endpoint"):
        publish.find(place)
    store._client.cache_clear()


def test_a_dead_or_forbidding_store_never_prints_a_secret(
    proxied: tuple[Proxy, str], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy, place = proxied
    secrets = {"AWS_SECRET_ACCESS_KEY": "canary-secret", "AWS_SESSION_TOKEN": "canary-token"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    store._client.cache_clear()
    kept = open_store(place)
    for fault in ("", "reset", "500"):
        proxy.restart(lambda request, fault=fault: fault)
        for call in (lambda: kept.upload("small", folder / "small", ""), lambda: kept.read_range("small", 0, 1)):
            with pytest.raises(StepError) as caught:
                call()
            told = str(caught.value)
            assert "\n" not in told
            assert not [value for value in secrets.values() if value in told]
    printed = capfd.readouterr()
    assert not [value for value in secrets.values() if value in printed.out + printed.err]


# --- TLS --------------------------------------------------------------------------------------------------------


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of our own for 127.0.0.1, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    issuer, subject = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("our CA", "s3"))

    def made(name: object, public: object, extension: object) -> object:
        return (
            x509.CertificateBuilder(issuer, name, public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=True)
        )

    own = ec.generate_private_key(ec.SECP256R1())
    authority = made(issuer, key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
    server = made(subject, own.public_key(), x509.BasicConstraints(ca=False, path_length=None)).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(authority.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "server.pem").write_bytes(
        server.sign(key, hashes.SHA256()).public_bytes(pem)
        + own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem", folder / "server.pem"


@pytest.fixture
def with_tls(
    s3: str, s3_server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """A URI behind https with a certificate that only our CA vouches for, and that CA's."""
    ca, server = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    with between(s3_server["AWS_ENDPOINT_URL"], context) as (_, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store._client.cache_clear()
        yield f"{s3}/{tmp_path.name}/tls", ca
    store._client.cache_clear()


def test_the_ca_bundle_of_the_environment_is_trusted_by_both_libraries(
    with_tls: tuple[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, ca = with_tls
    monkeypatch.setenv("AWS_CA_BUNDLE", str(ca))
    publish.publish_folder(place, folder)
    assert (publish.fetch(place, tmp_path / "cache") / "small").read_bytes() == b"s"


def test_a_certificate_that_nobody_vouches_for_is_refused(
    with_tls: tuple[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = with_tls
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    kept = open_store(place)
    for call in (lambda: kept.read("name"), lambda: kept.read_range("name", 0, 1)):
        with pytest.raises(StepError, match=r"failed on s3://vqa-grpo"):
            call()


def test_a_ca_bundle_that_is_not_there_is_named(
    with_tls: tuple[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = with_tls
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/bundle.pem")
    kept = open_store(place)
    for call in (lambda: kept.read("name"), lambda: kept.upload("small", folder / "small", "")):
        with pytest.raises(ConfigurationError, match=r"AWS_CA_BUNDLE /no/such/bundle\.pem cannot be read"):
            call()
