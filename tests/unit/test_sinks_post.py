"""What the statuses of an answer mean to a sink, and what of it is shown."""

import httpx
import msgspec
import pytest

from relay.clock import SECOND
from relay.errors import Gone, Refused, SinkError, Unavailable
from relay.sinks.post import REASONS, Reply, reason_of, require_success
from tests.support.receiver import contracted

NOW = 1_780_000_000 * SECOND


def outcome(status: int) -> str:
    try:
        require_success("x", Reply(status=status), positions=[1], now=NOW)
    except Refused:
        return "refused"
    except Gone:
        return "gone"
    except Unavailable as error:
        pause = error.retry_after_seconds
        return "unavailable" if pause is None else f"unavailable, {pause:g} s"
    return "delivered"


def test_every_status_there_can_be_has_its_outcome_and_a_reason_of_the_closed_set() -> None:
    for status in range(1000):
        assert outcome(status) == contracted(status)
        assert 200 <= status < 300 or reason_of(status) in REASONS


def test_all_positions_are_refused_with_what_the_receiver_says() -> None:
    reply = Reply(status=422, body=b"severity:\tunknown\n" + b"x" * 1000, host="soar.example")
    with pytest.raises(Refused) as caught:
        require_success("webhook soar", reply, positions=[4, 5], now=NOW)
    assert list(caught.value.positions) == [4, 5]
    assert caught.value.positions[4].startswith("status 422: severity: unknown x")
    assert len(caught.value.positions[4]) <= 256 + len("status 422: ")
    assert str(caught.value).startswith("webhook soar: soar.example answered 422 Unprocessable ")


@pytest.mark.parametrize("headers", [httpx.Headers({"Retry-After": "9"}), {"retry-after": "9"}])
def test_retry_after_is_read_from_any_mapping(headers: dict[str, str]) -> None:
    with pytest.raises(Unavailable) as caught:
        require_success("x", Reply(status=503, headers=headers), positions=[], now=NOW)
    assert caught.value.retry_after_seconds == 9


def test_errors_of_answers_without_a_body_end_with_the_status() -> None:
    with pytest.raises(SinkError) as caught:
        require_success("slack soc", Reply(status=503), positions=[1], now=NOW)
    assert str(caught.value) == "slack soc: the endpoint answered 503 Service Unavailable"


def test_replies_do_not_share_their_headers() -> None:
    assert Reply(status=200).headers is not Reply(status=200).headers
    assert msgspec.structs.replace(Reply(status=200), status=201).status == 201
