"""HTTP by the byte: requests that no client library would send, and a connection to send them by.

What is sent is made in `mutations` and by tests; how a service is started is in `served_bento`.
"""

import http.client
import socket

from health_predict.serving.batches import Json
from health_predict_tests import bentos
from health_predict_tests.served_bento import Reply

SINGLE, BATCH = "/predict", "/predict/batch"
# The service itself gives a body 30 s: nothing may take twice that.
HANG_SECONDS = 60.0


def request(
    body: bytes,
    *headers: tuple[bytes, bytes],
    path: str = SINGLE,
    method: str = "POST",
    media_type: str | None = Json.media_type,
) -> bytes:
    """Returns a request whose length is right."""
    kind = [] if media_type is None else [(b"content-type", media_type.encode())]
    all_headers = [(b"host", b"127.0.0.1"), *kind, (b"content-length", b"%d" % len(body)), *headers]
    lines = b"".join(b"%s: %s\r\n" % header for header in all_headers)
    return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method.encode(), path.encode(), lines, body)


class Line:
    """A connection that is kept as long as the server keeps it.

    Args:
        port: of the server, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, content: bytes, method: str = "POST", is_http: bool = True) -> Reply | None:
        """Sends a request; returns the answer, None where the server closed without one.

        Args:
            content: as it goes over the wire.
            method: of the request: an answer to HEAD has no body.
            is_http: whether a server must be able to read it; else no more is said to come, and the
                connection is not used again.

        Raises:
            TimeoutError: nothing came.
        """
        kept = self._socket is not None
        reply = self._ask(content, method, is_http)
        if reply is None and kept and is_http:
            # A server may close what it kept, just when it is used.
            return self._ask(content, method, is_http)
        return reply

    def _ask(self, content: bytes, method: str, is_http: bool) -> Reply | None:
        if self._socket is None:
            self._socket = socket.create_connection((bentos.HOST, self._port), HANG_SECONDS)
        try:
            self._socket.sendall(content)
            if not is_http:
                self._socket.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(self._socket, method=method)
            response.begin()
            reply = Reply(response.status, response.headers, response.read())
        except TimeoutError:
            self.close()
            raise
        except (OSError, http.client.HTTPException):
            self.close()
            return None
        if response.will_close or not is_http:
            self.close()
        return reply

    def close(self) -> None:
        """Closes the connection; another is made when something is asked again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
