"""Bearer tokens of ours and of an OAuth issuer: who is known, and everything that is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from assistant.security.authentication import Authenticator, UnauthenticatedError
from assistant.security.limiter import Limiter
from assistant.security.oauth import Issuer
from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.store.database import Database
from assistant.store.migrations import migrate

ISSUER, AUDIENCE = "https://login.example", "https://vdg.example/mcp"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def keys() -> dict[str, Any]:
    one = {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "r", "use": "sig"}
    two = {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "e"}
    return {"keys": [one, two]}


def token(key: Any = RSA_KEY, algorithm: str = "RS256", kid: str = "r", **changed: Any) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 60, "scope": "vllm-diagnose:operator"}
    claims = {name: value for name, value in {**claims, **changed}.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


class Asked:
    """An issuer's key address that counts how often it was asked."""

    def __init__(self) -> None:
        self.times = 0
        self.fails = False

    async def __call__(self) -> Any:
        self.times += 1
        if self.fails:
            raise OSError("the issuer is away")
        return keys()


@pytest.fixture
def tokens(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path}/a.db")
    migrate(database)
    yield Tokens(database)
    database.close()


def who(authenticator: Authenticator, header: str | None) -> Any:
    return asyncio.run(authenticator.who(header))


def test_own_tokens_are_known_until_they_are_revoked(tokens: Tokens) -> None:
    text, made = tokens.create("grafana", Role.viewer)
    authenticator = Authenticator(tokens)
    assert who(authenticator, f"Bearer {text}").role is Role.viewer
    assert who(authenticator, f"bearer   {text} ").name == "grafana"
    tokens.revoke(made.id)
    authenticator._known.clear()  # what the few seconds of memory would do
    with pytest.raises(UnauthenticatedError) as refused:
        who(authenticator, f"Bearer {text}")
    assert refused.value.code == "invalid_token"


def test_without_a_token_only_a_server_that_says_so_lets_people_look(tokens: Tokens) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        who(Authenticator(tokens), None)
    assert refused.value.code == ""
    assert "resource_metadata" in refused.value.challenge("https://x/.well-known/y")
    assert who(Authenticator(tokens, anonymous=True), " ").role is Role.viewer
    with pytest.raises(UnauthenticatedError):
        who(Authenticator(tokens, anonymous=True), "Bearer vdg_wrong")


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer ", "Bearer \u00e9", "Bearer " + "x" * 9000, "vdg_x"])
def test_headers_that_are_no_bearer_token(tokens: Tokens, header: str) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        who(Authenticator(tokens), header)
    assert refused.value.code in ("invalid_request", "invalid_token")


def test_an_issuers_token_carries_its_role(tokens: Tokens) -> None:
    authenticator = Authenticator(tokens, issuer=Issuer(ISSUER, AUDIENCE, Asked()))
    assert who(authenticator, f"Bearer {token()}").role is Role.operator
    assert who(authenticator, f"Bearer {token(EC_KEY, 'ES256', 'e', scope=None)}").role is Role.viewer
    assert who(authenticator, f"Bearer {token(scope='admin operator')}").role is Role.viewer
    assert who(authenticator, f"Bearer {token(aud=['x', AUDIENCE])}").id == "oauth:ann"


@pytest.mark.parametrize(
    "bad",
    [
        token(aud="https://other.example/mcp"),
        token(aud=None),
        token(iss="https://evil.example"),
        token(exp=time.time() - 3600),
        token(exp=None),
        token(sub=None),
        token(nbf=time.time() + 3600),
        token(OTHER),
        token(kid="unknown"),
        token(EC_KEY, "ES256", "r"),
        jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": time.time() + 60}, "", algorithm="none"),
        jwt.encode(
            {"iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": time.time() + 60},
            "a secret that is long enough for the algorithm",
            algorithm="HS256",
            headers={"kid": "r"},
        ),
        "a.b.c",
        token()[:-4] + "AAAA",
    ],
)
def test_an_issuers_token_that_is_not_quite_right_is_nobodys(tokens: Tokens, bad: str) -> None:
    with pytest.raises(UnauthenticatedError):
        who(Authenticator(tokens, issuer=Issuer(ISSUER, AUDIENCE, Asked())), f"Bearer {bad}")


def test_unknown_keys_do_not_make_the_issuer_be_asked_again_and_again(tokens: Tokens) -> None:
    asked = Asked()
    issuer = Issuer(ISSUER, AUDIENCE, asked)

    async def many() -> None:
        authenticator = Authenticator(tokens, issuer=issuer)
        for number in range(20):
            with pytest.raises(UnauthenticatedError):
                await authenticator.who(f"Bearer {token(kid=f'k{number}')}")
        assert (await authenticator.who(f"Bearer {token()}")).id == "oauth:ann"
        asked.fails = True
        issuer._fetched = float("-inf")
        assert (await authenticator.who(f"Bearer {token(sub='bob')}")).id == "oauth:bob"

    asyncio.run(many())
    assert asked.times == 2


def test_the_limit_is_for_each_sender_and_starts_no_thread() -> None:
    limiter, threads = Limiter(3), set(threading.enumerate())

    async def many() -> None:
        assert [await limiter.take("a") for _ in range(3)] == [None] * 3
        wait = await limiter.take("a")
        assert wait is not None and 1 <= wait <= 61
        assert await limiter.take("b") is None
        assert set(threading.enumerate()) == threads

    asyncio.run(many())
