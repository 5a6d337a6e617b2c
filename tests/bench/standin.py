"""The simulator in a process of its own, with its pages rendered before the first request. Prints its addresses."""

import asyncio
import sys

from relay.clock import SystemClock
from relay.simulator import Settings, Simulator, serve
from tests.bench.rig import USER


async def main(incidents: int, spread_seconds: float) -> None:
    simulator = Simulator(SystemClock(), settings=Settings(memo_pages=1000, keep_history=False))
    simulator.add_tenant(USER, "password", incidents=incidents, spread_seconds=spread_seconds)
    async with serve(simulator) as served:
        print(served.base_url, flush=True)  # noqa: T201  # the parent reads it
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
