"""Access and refresh tokens of the simulated ESET Connect: issued, rotated, expired, revoked. Not who may log in."""

import random
from typing import Any

import msgspec

from relay.clock import Clock
from relay.simulator.settings import Settings


class _Token(msgspec.Struct, frozen=True):
    username: str
    expires: float


class Logins:
    """Every token that is good right now."""

    def __init__(self, clock: Clock, settings: Settings, rng: random.Random) -> None:
        self._clock = clock
        self._settings = settings
        self._rng = rng
        self._access: dict[str, _Token] = {}
        self._refresh: dict[str, _Token] = {}

    def issue(self, username: str) -> dict[str, Any]:
        """The JSON of a successful login: a new pair of tokens."""
        now = self._clock.monotonic()
        self._forget_expired(now)
        access, refresh = (f"{kind}-{self._rng.getrandbits(160):040x}" for kind in ("access", "refresh"))
        self._access[access] = _Token(username, now + self._settings.token_lifetime_seconds)
        self._refresh[refresh] = _Token(username, now + self._settings.refresh_lifetime_seconds)
        return {
            "access_token": access,
            "refresh_token": refresh,
            "token_type": "Bearer",
            "expires_in": int(self._settings.token_lifetime_seconds),
        }

    def owner(self, access_token: str) -> str:
        """The user name of a good access token, else nothing."""
        return self._owner(self._access.get(access_token))

    def refresh_owner(self, refresh_token: str) -> str:
        """The user name of a good refresh token, else nothing."""
        return self._owner(self._refresh.get(refresh_token))

    def use_up(self, refresh_token: str) -> None:
        """Makes a refresh token invalid, as using it does."""
        self._refresh.pop(refresh_token, None)

    def revoke(self, username: str = "", *, refresh_too: bool = False) -> None:
        """Makes access tokens invalid, of one user or of all; `refresh_too`: refresh tokens as well."""
        self._access = _without(self._access, username)
        if refresh_too:
            self._refresh = _without(self._refresh, username)

    def _owner(self, token: _Token | None) -> str:
        return token.username if token and self._clock.monotonic() < token.expires else ""

    def _forget_expired(self, now: float) -> None:
        self._access = {text: token for text, token in self._access.items() if now < token.expires}
        self._refresh = {text: token for text, token in self._refresh.items() if now < token.expires}


def _without(tokens: dict[str, _Token], username: str) -> dict[str, _Token]:
    return {text: token for text, token in tokens.items() if username and token.username != username}
