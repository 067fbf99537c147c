"""A server that answers the same bytes whatever it is asked: how fast the load generator can ask.

`python -m benchmarks.peers.trivial PORT`.
"""

import asyncio
import json
import sys
from typing import Any

import uvloop

from benchmarks.load import HOST

# As long as the service's answer to one encounter.
_BODY = json.dumps({"probability_score": 0.5, "padding": "x" * 400}).encode()
_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
) + _BODY


class _Server(asyncio.Protocol):
    def __init__(self) -> None:
        self._request = b""

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, end, body = self._request.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().rpartition(b"content-length:")[2].split()[0]):
            self._request = b""
            self._transport.write(_ANSWER)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Server, HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
