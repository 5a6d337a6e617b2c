"""`python -m tests.fuzz --responses 1000000 --seed 1 --workers 2`; with `--number N`, that answer alone."""

import argparse
import sys

from tests.fuzz.campaign import answer, campaign
from tests.fuzz.mutations import bases
from tests.fuzz.oracle import examine, poll


def main() -> int:
    """1 when anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--responses", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--number", type=int, help="replay this answer of the seed")
    options = parser.parse_args()
    if options.number is not None:
        base, body = answer(bases(options.seed), options.seed, options.number)
        print(repr(body))  # noqa: T201
        print(examine(body, base.known), poll(body))  # noqa: T201
        return 0
    tally = campaign(options.responses, options.seed, workers=options.workers)
    print(tally)  # noqa: T201
    print("\n\n".join(tally.failures))  # noqa: T201
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
