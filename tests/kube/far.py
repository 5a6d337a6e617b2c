"""What pods talk to, on this machine's side of the node's cable: TLS before a plain server of the tests.

The relay sends passwords and incidents only encrypted, except within one machine; a pod is another one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.kube.cluster import MACHINE
from tests.support.tls import Certificates, server_tls

_CHUNK_BYTES = 1 << 16


@contextlib.asynccontextmanager
async def encrypted(port: int, certificates: Certificates, *, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """The https URL, as pods see it, of the server that listens on this port without TLS."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(host, port)
                await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    listening = await asyncio.start_server(serve, MACHINE, 0, ssl=server_tls(certificates))
    try:
        yield f"https://{MACHINE}:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side closes; the other is then closed as well."""
    try:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                writer.write(chunk)
                await writer.drain()
    finally:
        writer.close()
