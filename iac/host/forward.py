#!/usr/bin/env python3
"""Carries connections from the container's network to a port of its loopback.

The supervisor serves on 127.0.0.1 alone, which nothing outside of the container can be forwarded
to. This is the main process of the container that holds the loopback, the network and the process
ids of all Dagster processes (compose.yaml, `node`): it does so little that it does not die.

    forward.py LISTEN_PORT TARGET_PORT
"""

import asyncio
import contextlib
import signal
import sys

TARGET = "127.0.0.1"
_CHUNK = 65536


async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copies one direction until its end, and says there that it has ended."""
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
        target.write_eof()


async def serve(listen: int, target: int) -> None:
    """Forwards until SIGTERM or SIGINT."""

    async def forward(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(TARGET, target)
            requests = asyncio.create_task(carry(client, writer))
            await carry(reader, answers)  # whoever answers ends it, also while it is still asked
            requests.cancel()
            writer.close()
        answers.close()

    server = await asyncio.start_server(forward, "0.0.0.0", listen)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server:
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
