"""Proxies and certificates that do not work: one sentence that names the variable."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.teacher.client import Client, Endpoint
from gad_jax.teacher.network import CERTIFICATES, PROXIES, make_http
from gad_jax.teacher.retrying import Patience
from tests.fault_server import FaultServer

QUESTION = [{"role": "user", "content": "Hello"}]
FAR = "https://host.invalid/v1"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *CERTIFICATES, "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"])
@pytest.mark.parametrize("value", ["htp://host:3128", "http://host:port", "socks9://host:1"])
def test_a_proxy_that_is_none_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^the environment variable {name}={value} is no address"):
        make_http(FAR, {}, 1.0)
    make_http("http://localhost:1/v1", {}, 1.0)  # which no proxy reaches


def test_a_socks_proxy_without_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://user:correct-horse@127.0.0.1:1080")
    with pytest.raises(UserError, match=r"ALL_PROXY.*pip install socksio; or unset it") as told:
        make_http(FAR, {}, 1.0)
    assert "correct-horse" not in str(told.value)


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_place_of_certificates_that_is_none(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, "/nowhere/at/all")
    with pytest.raises(UserError, match=f"{name} names /nowhere/at/all, and there is no such"):
        make_http(FAR, {}, 1.0)
    make_http("http://localhost:1/v1", {}, 1.0)  # which needs no certificates
    monkeypatch.delenv(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(__file__)))
    with pytest.raises(UserError, match="SSL_CERT_FILE names a file without certificates"):
        make_http(FAR, {}, 1.0)


def ends_with(url: str) -> str:
    async def run() -> None:
        async with Client(Endpoint(url, "m"), Patience(first_wait=0.01)) as client:
            await client.chat(QUESTION)

    with pytest.raises(UserError) as ended:
        asyncio.run(run())
    return str(ended.value)


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "127.0.0.1:9")
    says = ends_with(FAR)
    assert "(connection refused through the proxy of the environment variable HTTPS_PROXY)" in says


def test_a_certificate_that_nobody_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate)
    subprocess.run(["openssl", "req", "-x509", *made, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with FaultServer(tls=context) as server:
        says = ends_with(server.url)
        assert "its certificate is not trusted" in says
        assert "set SSL_CERT_FILE" in says
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

        async def run() -> str:
            monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # which is not used here
            async with Client(Endpoint(server.url, "m")) as client:
                return (await client.chat(QUESTION)).completions[0].text

        assert asyncio.run(run()) == "Answer 1 to Hello"
    with FaultServer() as plain:
        assert "does not speak TLS" in ends_with(plain.url.replace("http://", "https://"))
