"""A token issuer on loopback: signs what a test asks for and serves its keys as well or as badly as a test wants."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ABSENT: Any = object()
BOTH_SCOPES = "api/backend_access api/backend_write"
SECRET = b"a secret that the issuer publishes by mistake"


KEYS: dict[str, Any] = {}
LOCK = threading.Lock()


def private_key(name: str) -> Any:
    """The same key for the same name; what it is called says what it is."""
    with LOCK:
        if name not in KEYS:
            KEYS[name] = generate_key(name)
        return KEYS[name]


def generate_key(name: str) -> Any:
    if name.startswith("ec"):
        return ec.generate_private_key(ec.SECP384R1() if "p384" in name else ec.SECP256R1())
    if name.startswith("ed"):
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if "weak" in name else 2048)


def public_pem(name: str) -> bytes:
    pem: bytes = private_key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def public_jwk(name: str) -> dict[str, Any]:
    maker = {"ec": ECAlgorithm, "ed": OKPAlgorithm}.get(name[:2], RSAAlgorithm)
    jwk: dict[str, Any] = maker.to_jwk(private_key(name).public_key(), as_dict=True)  # type: ignore[attr-defined]
    return jwk | {"kid": name, "use": "sig"}


def broken_jwks() -> list[Any]:
    """What must not take the good keys beside it down, and must not verify anything either."""
    return [
        5,
        {},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "oct", "kid": "oct", "k": b64(SECRET), "alg": "HS256"},
        public_jwk("ec-as-rsa") | {"alg": "RS256"},
        public_jwk("rsa-as-ec") | {"alg": "ES256"},
        public_jwk("ec-p384") | {"alg": "ES256"},
        public_jwk("rsa-weak") | {"alg": "RS256"},
        public_jwk("rsa-enc") | {"use": "enc"},
        public_jwk("rsa-384") | {"alg": "RS384"},
        public_jwk("ed"),
    ]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(algorithm: str, key: Any, text: bytes) -> bytes:
    """Bytes as key make an HMAC of whatever they are, which PyJWT would refuse to make of a public key."""
    if isinstance(key, bytes):
        return hmac.new(key, text, hashlib.sha256).digest()
    signature: bytes = jwt.get_algorithm_by_name(algorithm).sign(text, key)
    return signature


def make_token(header: dict[str, Any], payload: Any, key: Any) -> str:
    """A JWS in compact form; no key means no signature."""
    parts = [json.dumps(part) if not isinstance(part, str) else part for part in (header, payload)]
    text = ".".join(b64(part.encode()) for part in parts)
    return f"{text}.{b64(sign(header.get('alg', 'RS256'), key, text.encode())) if key else ''}"


class Issuer:
    """Serves `keys` and what is in `extra`, in the way that `answer` says, and counts who asks for what."""

    def __init__(self, *keys: str, extra: list[Any] | None = None, answer: str = "keys") -> None:
        self.keys, self.extra = list(keys), extra or []
        self.requests: list[str] = []
        self.server = JWKSServer(self, 0)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.answer = "keys"
        self.switch(answer)

    def switch(self, answer: str) -> None:
        """One of ANSWERS, or "down": nobody listens."""
        self.answer = answer
        if answer == "down":
            self.server.close()
        elif self.server.closing.is_set():
            self.server = JWKSServer(self, self.port)

    @property
    def fetches(self) -> int:
        return len(self.requests)

    def jwks(self) -> bytes:
        return json.dumps({"keys": [*self.extra, *map(public_jwk, self.keys)]}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What an access token of this issuer says, with changes; ABSENT leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": "ada",
            "client_id": "dashboard",
            "token_use": "access",
            "scope": BOTH_SCOPES,
            "iat": now,
            "exp": now + 3600,
        }
        return {name: value for name, value in (claims | changes).items() if value is not ABSENT}

    def token(self, kid: str = "rsa", header: dict[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
        """Signed by the key that kid names, unless another is given."""
        algorithm = "ES256" if kid.startswith("ec") else "RS256"
        head = {"alg": algorithm, "typ": "JWT", "kid": kid} | (header or {})
        head = {name: value for name, value in head.items() if value is not ABSENT}
        return make_token(head, self.claims(**claims), private_key(kid) if key is None else key)

    def close(self) -> None:
        self.switch("down")


class JWKSServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, issuer: Issuer, port: int) -> None:
        self.issuer = issuer
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", port), JWKSHandler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        if not self.closing.is_set():
            self.closing.set()
            self.shutdown()
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is what a hanging endpoint is for."""


class JWKSHandler(BaseHTTPRequestHandler):
    def __init__(self, request: Any, client_address: Any, server: BaseServer) -> None:
        assert isinstance(server, JWKSServer)
        self.issuer, self.closing = server.issuer, server.closing
        super().__init__(request, client_address, server)

    def do_GET(self) -> None:
        self.issuer.requests.append(self.path)
        ANSWERS["keys" if self.path == "/elsewhere" else self.issuer.answer](self)

    def reply(self, body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def reply_in_drops(self) -> None:
        """Always something within any read time-out, never the whole."""
        self.reply(b"{")
        while not self.closing.wait(0.3):
            self.wfile.write(b" ")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


def slowly(handler: JWKSHandler) -> None:
    handler.closing.wait(1)
    handler.reply(handler.issuer.jwks())


def hang(handler: JWKSHandler) -> None:
    handler.closing.wait(60)


ANSWERS: dict[str, Callable[[JWKSHandler], None]] = {
    "keys": lambda handler: handler.reply(handler.issuer.jwks()),
    "slow": slowly,
    "500": lambda handler: handler.reply(handler.issuer.jwks(), 500),
    "html": lambda handler: handler.reply(b"<!doctype html><title>Sign in</title>", content_type="text/html"),
    "deep": lambda handler: handler.reply(b'{"keys":' + b"[" * 100_000),
    "redirect": lambda handler: handler.reply(b"", 302, Location="/elsewhere"),
    "large": lambda handler: handler.reply(handler.issuer.jwks() + b" " * 300_000),
    "no-list": lambda handler: handler.reply(b'{"keys": 5}'),
    "no-keys": lambda handler: handler.reply(b'{"keys": []}'),
    "drip": JWKSHandler.reply_in_drops,
    "hang": hang,
    "nothing": lambda handler: handler.connection.close(),
}
