"""The HTTP client of an endpoint, and sentences for what keeps it from connecting.

Proxies and certificates come from environment variables, as for curl and pip. A mistake in one of
them is named with its variable.
"""

import contextlib
import os
import re
import ssl
from collections.abc import Iterator

import httpx2

from gad_jax.base.errors import UserError, first_line
from gad_jax.teacher.failures import said

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
CONNECT_SECONDS = 10.0


def make_http(base_url: str, headers: dict[str, str], timeout: float) -> httpx2.AsyncClient:
    """Returns the HTTP client for requests to this address. Raises UserError if a variable of the
    environment keeps it from being made."""
    host = re.match(r"https?://(\[[^\]]*\]|[^:/]*)", base_url)
    # A proxy does not reach this computer. SSL_CERT_FILE counts there too, if there is TLS.
    direct = {f"all://{host[1]}": None} if host and _is_local(base_url) else {}
    from_environment = not direct or base_url.startswith("https")
    if from_environment:
        _check_certificates()
    with _naming_the_variable():
        return httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            # `Pace` limits the requests in flight; the default of 100 connections would cap it.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=from_environment,
            mounts=direct,
        )


def _is_local(base_url: str) -> bool:
    return re.match(r"https?://(localhost|127\.|\[::1\])", base_url) is not None


def _check_certificates() -> None:
    for name, there in zip(CERTIFICATES, (os.path.isfile, os.path.isdir), strict=True):
        place = os.environ.get(name, "")
        if place and not all(map(there, place.split(os.pathsep if name.endswith("DIR") else "\0"))):
            what = "file" if name == "SSL_CERT_FILE" else "directory"
            raise UserError(
                f"the environment variable {name} names {said(place)}, and there is no such {what};"
                f" name a {what} with the certificates to trust, or unset it"
            )


@contextlib.contextmanager
def _naming_the_variable() -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise UserError(
            f"the environment variable SSL_CERT_FILE names a file without certificates "
            f"({said(first_line(error))}); name a PEM file with those to trust, or unset it"
        ) from None
    except Exception as error:  # of a proxy's address: ImportError, ValueError or InvalidURL
        names = [name for name in map(_as_set, PROXIES) if name and not _works(os.environ[name])]
        if not names:
            raise
        value = os.environ[names[0]]
        if isinstance(error, ImportError) and value.startswith("socks"):
            advice = "is a SOCKS proxy, which needs another package: pip install socksio"
        else:
            advice = "is no address of a proxy, such as http://host:3128"
        raise UserError(
            f"the environment variable {names[0]}={said(value)} {advice}; or unset it"
        ) from None


def _as_set(name: str) -> str:
    """Returns the variable's name as it is set, in lower case or not; empty if it is not."""
    return next((form for form in (name.lower(), name) if os.environ.get(form)), "")


def _works(proxy: str) -> bool:
    try:
        httpx2.AsyncHTTPTransport(proxy=proxy if "://" in proxy else f"http://{proxy}")
    except Exception:
        return False
    return True


def hopeless(error: BaseException, base_url: str) -> str:
    """Returns the sentence for a connection that fails in the same way every time: a certificate
    that is not trusted, another protocol, a proxy that refuses. Empty for any other failure."""
    cause = _find(error, ssl.SSLError)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"{base_url}: its certificate is not trusted ({said(cause.verify_message)}); set "
            "SSL_CERT_FILE to the PEM file of the authority that signed it"
        )
    if cause is not None and "WRONG_VERSION" in str(cause):
        return f"{base_url}: the server there does not speak TLS; use http:// or another port"
    if isinstance(error, httpx2.ProxyError):
        return f"{base_url}: the proxy{_proxy(base_url)} refused the request ({said(str(error))})"
    return ""


def unreached(error: BaseException, base_url: str) -> str:
    """Returns why no connection was possible; empty for a failure of another kind."""
    if not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ""
    cause = _find(error, OSError)
    words = "no answer" if isinstance(error, httpx2.ConnectTimeout) else said(first_line(error))
    if _find(error, ConnectionRefusedError) is not None:
        words = "connection refused"
    elif isinstance(cause, OSError) and cause.strerror:
        words = cause.strerror.lower()
    return f"{words}{_proxy(base_url)}"


def _proxy(base_url: str) -> str:
    """Returns ' through the proxy of HTTPS_PROXY', by the variable that is set for this address."""
    scheme = "HTTPS_PROXY" if base_url.startswith("https") else "HTTP_PROXY"
    if _is_local(base_url):
        return ""
    name = _as_set(scheme) or _as_set("ALL_PROXY")
    return f" through the proxy of the environment variable {name}" if name else ""


def _find(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Returns the cause of an error that is of this kind."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
