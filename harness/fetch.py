"""The one download door: http, https and file URLs, streamed to disk, checked, and only then renamed into place.

What a server can do wrong is bounded here: size, time without progress, redirects, and content (SHA-256).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.errors import CacheError, FetchError

if TYPE_CHECKING:
    import urllib.error
    import urllib.request

SCHEMES = frozenset({"http", "https", "file"})
MAX_BYTES = 1 << 30
STALL_SECONDS = 30.0
# A mirror that gives less than this in STALL_SECONDS stalls, however regularly it drips.
_LEAST_BYTES = 1024
_CHUNK = 1 << 18
_RETRY_DELAYS = (0.5, 2.0)

Progress = Callable[[int, int | None], None]  # (bytes so far, bytes in all if known)


class NotThereError(FetchError):
    """The server answered, and does not have it (404 and 410, or no such file)."""


class UnreachableError(FetchError):
    """No answer, or none to the end, after several tries: the network's or the server's trouble of today."""


class _TransientError(Exception):
    """Worth another try: a dropped connection, a 5xx."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A finished download: where it lies, how long it is in bytes, and its SHA-256 in hex."""

    path: Path
    size: int
    sha256: str


def fetch(
    url: str,
    dest: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    max_bytes: int = MAX_BYTES,
    stall_seconds: float = STALL_SECONDS,
    on_progress: Progress | None = None,
) -> Fetched:
    """Download `url` to `dest`, which appears complete and checked or not at all.

    `sha256` (hex) and `size` (bytes) are what it must be. Raises NotThereError, FetchError, and CacheError when
    `dest` cannot be written.
    """
    limit = max_bytes if size is None else min(size, max_bytes)
    partial = dest.with_name(f".{dest.name}.{os.getpid()}-{time.monotonic_ns()}.part")
    try:
        result = _with_retries(url, partial, limit, stall_seconds, on_progress)
        _check(url, result, sha256, size)
        partial.replace(dest)
    except OSError as error:
        message = f"{dest}: cannot be written: {error.strerror}"
        raise CacheError(
            message, remedy="free some space, or name another cache directory in COREMATRIX_CACHE"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return Fetched(path=dest, size=result.size, sha256=result.sha256)


def exists(url: str, *, stall_seconds: float = STALL_SECONDS) -> bool:
    """Whether the server has it, without downloading it (HEAD). FetchError when it does not say."""
    try:
        with _open(url, stall_seconds, method="HEAD"):
            return True
    except NotThereError:
        return False
    except _TransientError as error:
        message = f"{url}: {error}"
        raise UnreachableError(message, remedy="check the network, or name another mirror in kernels.yaml") from error


def _with_retries(url: str, partial: Path, limit: int, stall_seconds: float, on_progress: Progress | None) -> Fetched:
    for delay in (*_RETRY_DELAYS, None):
        try:
            with partial.open("wb") as out:
                size, digest = _stream(url, out, limit, stall_seconds, on_progress)
            return Fetched(path=partial, size=size, sha256=digest)
        except _TransientError as error:
            if delay is None:
                message = f"{url}: {error}"
                remedy = "check the network, or name another mirror in kernels.yaml"
                raise UnreachableError(message, remedy=remedy) from error
            time.sleep(delay)
    raise AssertionError  # the last delay is None: the loop above has returned or raised


def _stream(
    url: str, out: IO[bytes], limit: int, stall_seconds: float, on_progress: Progress | None
) -> tuple[int, str]:
    digest = hashlib.sha256()
    done = 0
    with _open(url, stall_seconds) as (response, announced):
        if announced is not None and announced > limit:
            message = f"{url}: announces {announced} bytes, more than the {limit} expected at most"
            raise FetchError(message)
        for chunk in _chunks(url, response, stall_seconds):
            done += len(chunk)
            if done > limit:
                message = f"{url}: longer than the {limit} bytes expected at most"
                raise FetchError(message)
            digest.update(chunk)
            out.write(chunk)
            if on_progress is not None:
                on_progress(done, announced)
    if announced is not None and done < announced:
        message = f"the connection ended after {done} of {announced} bytes"
        raise _TransientError(message)
    return done, digest.hexdigest()


def _chunks(url: str, response: Any, stall_seconds: float) -> Iterator[bytes]:
    """Chunks as they come. The socket's timeout catches silence, the window below catches dripping."""
    import http.client

    since, got = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(_CHUNK) if hasattr(response, "read1") else response.read(_CHUNK)
        except TimeoutError as error:
            raise _stalled(url, stall_seconds) from error
        except (http.client.HTTPException, OSError) as error:
            message = f"the connection broke: {error!r}"
            raise _TransientError(message) from error
        if not chunk:
            return
        got += len(chunk)
        now = time.monotonic()
        if now - since >= stall_seconds:
            if got < _LEAST_BYTES:
                raise _stalled(url, stall_seconds)
            since, got = now, 0
        yield chunk


def _stalled(url: str, stall_seconds: float) -> UnreachableError:
    message = f"{url}: the server stalls: nothing to speak of for {stall_seconds:g} s"
    return UnreachableError(message, remedy="try again, or name another mirror in kernels.yaml")


@contextlib.contextmanager
def _open(url: str, stall_seconds: float, *, method: str = "GET") -> Iterator[tuple[Any, int | None]]:
    # urllib and http.client are imported where they are used: a run that finds all in the cache never needs them, and
    # they take longer to import than such a run's kernels take to provide.
    import http.client
    import urllib.error
    import urllib.parse
    import urllib.request

    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in SCHEMES:
        message = f"{url}: scheme {scheme or '(none)'!r} is not one of {', '.join(sorted(SCHEMES))}"
        raise FetchError(message)
    # Accept-Encoding: what is hashed must be what is stored.
    request = urllib.request.Request(
        url, method=method, headers={"User-Agent": "corematrix", "Accept-Encoding": "identity"}
    )
    try:
        response = _opener().open(request, timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        with error:
            raise _http_error(url, error) from error
    except urllib.error.URLError as error:
        raise _url_error(url, error, stall_seconds) from error
    except TimeoutError as error:
        raise _stalled(url, stall_seconds) from error
    except (http.client.HTTPException, OSError) as error:
        raise _TransientError(repr(error)) from error
    with response:
        length = response.headers.get("Content-Length", "")
        yield response, int(length) if length.isdecimal() else None


def _http_error(url: str, error: urllib.error.HTTPError) -> Exception:
    message = f"{url}: the server answers {error.code} {error.reason}"
    if error.code in (404, 410):
        return NotThereError(message)
    if error.code >= 500 or error.code == 429:
        return _TransientError(f"the server answers {error.code} {error.reason}")
    return FetchError(message)


def _url_error(url: str, error: urllib.error.URLError, stall_seconds: float) -> Exception:
    if isinstance(error.reason, TimeoutError):
        return _stalled(url, stall_seconds)
    if isinstance(error.reason, FileNotFoundError) or "No such file" in str(error.reason):
        message = f"{url}: there is no such file"
        return NotThereError(message)
    return _TransientError(str(error.reason))


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Proxies and certificates come from the environment (http_proxy, no_proxy, SSL_CERT_FILE), as for any tool."""
    import urllib.parse
    from urllib import request

    class SameScheme(request.HTTPRedirectHandler):
        """Follows redirects within http or within https only: never to file:, never down to http, never elsewhere."""

        max_redirections = 5

        def redirect_request(  # noqa: PLR0917 - urllib's signature
            self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> request.Request | None:
            old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
            if old != new:
                message = f"{req.full_url}: redirects to another scheme: {newurl}"
                raise FetchError(message, remedy="name the address it redirects to in kernels.yaml, if you trust it")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(), request.HTTPHandler(), request.HTTPSHandler(), request.FileHandler(),
        request.HTTPDefaultErrorHandler(), request.HTTPErrorProcessor(), SameScheme(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def _check(url: str, result: Fetched, sha256: str | None, size: int | None) -> None:
    if size is not None and result.size != size:
        message = f"{url}: {result.size} bytes came, {size} were expected"
        raise FetchError(
            message, remedy="the mirror may be in the middle of an update: try again later, or name another"
        )
    if sha256 is not None and result.sha256 != sha256.lower():
        message = f"{url}: SHA-256 is {result.sha256}, expected {sha256}"
        raise FetchError(message, remedy="the mirror is damaged or tampered with: name another in kernels.yaml")
