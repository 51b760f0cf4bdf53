"""A web server in a thread: ranges, versions, redirects, refusals, and connections that break off."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Page:
    """What stands at one path.

    Attributes:
        body: of the answer.
        status: of the answer.
        headers: besides the usual ones.
        breaks: how many bytes each of the next answers sends before the connection ends.
        validated: whether it says its version, and answers ranges.
        sized: whether it says its length.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    validated: bool = True
    sized: bool = True

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()}"'


Answer = Callable[[str, str, dict[str, str], bytes], Page | None]
"""From method, path, headers and body of a request to what a program says to it; None: what stands at the path."""


@dataclass
class Site:
    """A running server: its address, what stands where, what it was asked, and a program behind it, if there is one."""

    address: str
    program: Answer | None = None
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def requests(self, path: str) -> list[dict[str, str]]:
        """The headers of each GET of a path."""
        return [headers for method, asked, headers in self.asked if method == "GET" and asked.partition("?")[0] == path]


def _answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    headers = {key.title(): value for key, value in handler.headers.items()}
    site.asked.append((handler.command, handler.path, headers))
    body = handler.rfile.read(int(headers.get("Content-Length", 0)))
    page = site.program(handler.command, handler.path, headers, body) if site.program else None
    page = page or site.pages.get(handler.path) or site.pages.get(handler.path.partition("?")[0]) or Page(status=404)
    status, body, extra = page.status, page.body, dict(page.headers)
    if page.validated and status == 200:
        extra.setdefault("ETag", page.etag)
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
        if headers.get("If-None-Match") == extra["ETag"]:
            status, body = 304, b""
        elif wanted and headers.get("If-Range", extra["ETag"]) == extra["ETag"]:
            start = int(wanted[1])
            status = 206 if start < len(body) else 416
            extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:] if status == 206 else b""
    handler.send_response(status)
    for key, value in extra.items():
        handler.send_header(key, value)
    if page.sized:
        handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    if handler.command == "GET" and status in (200, 206) and page.breaks:
        body = body[: page.breaks.pop(0)]
    if handler.command != "HEAD":
        handler.wfile.write(body)
    handler.close_connection = True


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate of this machine, made for one test."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(secret + made.public_bytes(pem))
    return folder / "server.pem"


@contextmanager
def serving(encrypted: Path | None = None) -> Iterator[Site]:
    """A server on a free port of this machine, as long as the block runs; over TLS with a certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, site)

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if encrypted:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(encrypted)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        site = Site(f"http{'s' if encrypted else ''}://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
