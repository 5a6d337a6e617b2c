"""Ends the processes that a test process left behind when it died: reads their ids from a pipe that dies with it.

Each line adds an id, or with a minus takes it back. Run as a script; not imported.
"""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    left: set[int] = set()
    for line in sys.stdin:
        process_id = int(line)
        if process_id > 0:
            left.add(process_id)
        else:
            left.discard(-process_id)
    for process_id in left:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


if __name__ == "__main__":
    main()
