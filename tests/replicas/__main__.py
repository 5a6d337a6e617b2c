"""`python -m tests.replicas`: one fleet among faults, of any size; exits 1 when its promise is broken.

`--journal sqlite --replicas 1` tries the scene itself. The logs are in the folder that is named at the start.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.stage import report
from tests.replicas.chaos import chaos
from tests.replicas.faults import KINDS
from tests.replicas.scene import Plan, tenants
from tests.support.broker import Cluster, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.replicas", description=__doc__)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--sources", type=int, default=40)
    parser.add_argument("--brokers", type=int, default=3, choices=(1, 3))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--faults", type=int, default=6)
    parser.add_argument("--changes", type=float, default=20, help="a second, over all sources")
    parser.add_argument("--poll-seconds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--journal", choices=("kafka", "sqlite"), default="kafka")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only such faults; may be given again")
    parser.add_argument("--folder", type=Path, help="where the relays and their logs are; by default a new one")
    chosen = parser.parse_args(arguments)
    if reason := missing():
        print(f"no Kafka broker: {reason}")  # noqa: T201
        return 1
    folder: Path = chosen.folder or Path(tempfile.mkdtemp(prefix="replicas-"))
    print(f"logs: {folder}/r*/relay.log", flush=True)  # noqa: T201
    plan = Plan(
        replicas=chosen.replicas,
        tenants=tenants(chosen.sources),
        journal=chosen.journal,
        poll_seconds=chosen.poll_seconds,
        seed=chosen.seed,
    )
    with Cluster(folder / "kafka", nodes=chosen.brokers) as cluster:
        ending = asyncio.run(
            chaos(
                folder,
                cluster,
                plan,
                seconds=chosen.seconds,
                faults=chosen.faults,
                changes_per_second=chosen.changes,
                kinds=tuple(chosen.kind or ()),
            )
        )
    report("Chaos", **ending.numbers)
    for text in ending.ended_by_themselves:
        print(text)  # noqa: T201
    if not ending.judgement.right:
        print(ending.judgement)  # noqa: T201
    return int(not ending.judgement.right or bool(ending.ended_by_themselves))


if __name__ == "__main__":
    raise SystemExit(main())
