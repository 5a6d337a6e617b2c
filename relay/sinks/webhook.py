"""A sink that posts each event to a URL: CloudEvents 1.0 in structured JSON, signed by Standard Webhooks.

https://www.standardwebhooks.com; the signature is made here, for the reference library signs bodies and times of some
kinds wrongly.
"""

import base64
import hmac
from asyncio import timeout
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import httpx

from relay.clock import SECOND, Clock
from relay.errors import ConfigError, Unavailable
from relay.formats import cloudevents, native
from relay.formats.message import Notice
from relay.signing import is_reserved, key_of
from relay.sinks import Delivery, Position
from relay.sinks.post import CONFIGURATION, Poster, require_success


class WebhookSink:
    """Acknowledged by any 2xx. May repeat an event after a crash or a lost answer, under the same `webhook-id`.

    `url`, `secrets` and `headers` are asked before every attempt, so that what was rotated counts from the next one.
    """

    max_batch = 1
    atomic = False
    outcome: Literal["delivered", "accepted"] = "delivered"
    """A 2xx says that the receiver has it."""

    def __init__(
        self,
        name: str,
        *,
        url: Callable[[], str],
        secrets: Callable[[], Sequence[str]],
        headers: Callable[[], Mapping[str, str]],
        http: httpx.AsyncClient,
        timeout_seconds: float,
        omit: Collection[str],
        clock: Clock,
    ) -> None:
        self._name = f"webhook {name}"
        self._secrets = secrets
        self._headers = headers
        self._omit = frozenset(omit)
        self._clock = clock
        self._poster = Poster(self._name, url=url, http=http, timeout_seconds=timeout_seconds, clock=clock)

    def __repr__(self) -> str:
        return f"WebhookSink({self._name!r})"

    async def open(self) -> Position | None:
        """Connects, for the first event to find the line open. Raises Unavailable, and ConfigError as `probe` does."""
        await self.probe()
        return None

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        """Posts them one by one. Raises Refused, Unavailable or Gone for the first that is not taken."""
        for delivery in batch:
            await self._post(delivery)

    async def tell(self, notice: Notice) -> None:
        """Nothing: programs read this sink, and a notice is no event."""

    async def probe(self) -> str:
        """Reads the secrets and headers, and connects without sending anything. Raises Unavailable, ConfigError."""
        keys = self._keys()
        self._extra()
        how = "signed" if keys else "unsigned: secrets is empty"
        return f"{await self._poster.probe()}; events are {how}"

    async def close(self, timeout_seconds: float) -> None:
        """Closes the connections."""
        with suppress(TimeoutError):
            async with timeout(timeout_seconds):
                await self._poster.close()

    async def _post(self, delivery: Delivery) -> None:
        body = cloudevents.structured(delivery, native.omit(delivery.body, self._omit))
        try:
            headers = {**self._extra(), "content-type": cloudevents.STRUCTURED_TYPE}
            headers |= signed(delivery.id, self._clock.now() // SECOND, body, self._keys())
        except ConfigError as exc:
            raise Unavailable(str(exc), reason=CONFIGURATION) from None
        reply = await self._poster.post(body, headers)
        require_success(self._name, reply, positions=[delivery.position], now=self._clock.now())

    def _keys(self) -> list[bytes]:
        try:
            return [key_of(secret) for secret in self._secrets()]
        except ValueError as exc:
            raise ConfigError(f"{self._name}: secrets: {exc} (it is not shown)") from None

    def _extra(self) -> Mapping[str, str]:
        headers = self._headers()
        for name in filter(is_reserved, headers):
            raise ConfigError(f"{self._name}: headers: {name} is set by the relay; remove it")
        return headers


def signed(id_: str, timestamp: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers of Standard Webhooks; one signature a key, none without keys. `timestamp` in Unix seconds."""
    headers = {"webhook-id": id_, "webhook-timestamp": str(timestamp)}
    if keys:
        content = f"{id_}.{timestamp}.".encode() + body
        digests = [hmac.digest(key, content, "sha256") for key in dict.fromkeys(keys)]
        headers["webhook-signature"] = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return headers
