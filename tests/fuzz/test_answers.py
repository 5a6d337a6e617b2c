"""No bytes of an answer cost a record, an exception of another's making, or a poll that does not end."""

import os

import pytest

from tests.fuzz.campaign import campaign, shrunk
from tests.fuzz.oracle import Wrong, require

SEED = int(os.environ.get("RELAY_TEST_SEED", "1"))


def test_6_000_mutated_answers_end_as_our_error_or_with_every_record_kept() -> None:
    tally = campaign(6_000, SEED)
    assert not tally.failures, "\n\n".join(tally.failures)
    assert tally.counts["refused"] > 600
    assert tally.counts["incidents"] > 3000
    assert tally.counts["dead letters"] > 600
    assert tally.counts["polls completed"] > 0


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_1_000_000_mutated_answers_end_as_our_error_or_with_every_record_kept() -> None:
    tally = campaign(1_000_000, SEED + 1, workers=2)
    print(f"\n{tally}")  # noqa: T201
    assert not tally.failures, "\n\n".join(tally.failures)
    assert tally.counts["answers"] == 1_000_000


def test_a_failure_is_shrunk_to_what_causes_it() -> None:
    def check(body: bytes) -> None:
        require(b"<X" not in body, "found")

    assert shrunk(b"a" * 500 + b"<X" + b"b" * 500, Wrong, check) == b"<X"
