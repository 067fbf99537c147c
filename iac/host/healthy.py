#!/usr/bin/env python3
"""Whether one of the services is healthy: ends with 0, or with 1 and the reason.

    healthy.py answers PORT [PATH]   HTTP: answers with 200 on 127.0.0.1
    healthy.py listens PORT          takes connections on 127.0.0.1
    healthy.py code PORT             the code server serves its definitions

Imports no more than it asks with: it runs every half minute, beside the work. The daemon has a
check of its own, `dagster-daemon liveness-check`.
"""

import http.client
import socket
import sys

HOST = "127.0.0.1"
_SECONDS = 5.0
# dagster._grpc.server registers its health under this name.
_SERVICE = "DagsterApi"


def answers(port: str, path: str = "/") -> str:
    """Returns what is wrong with what answers HTTP, an empty string if nothing is."""
    connection = http.client.HTTPConnection(HOST, int(port), timeout=_SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{HOST}:{port} does not answer: {error}"
    finally:
        connection.close()
    return "" if status == 200 else f"{HOST}:{port}{path} answers with {status}"


def listens(port: str) -> str:
    """Returns why no connection can be made, an empty string if one can."""
    try:
        socket.create_connection((HOST, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        return f"{HOST}:{port} takes no connection: {error}"
    return ""


def code(port: str) -> str:
    """Returns what is wrong with the code server, an empty string if nothing is."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=_SERVICE), timeout=_SECONDS
            )
        except grpc.RpcError as error:
            return f"the code server does not answer: {error.code().name}"
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else f"the code server answers with {answer.status}"


CHECKS = {"answers": answers, "listens": listens, "code": code}


def main(name: str, *arguments: str) -> None:
    """Ends the process with what a check found."""
    problem = CHECKS[name](*arguments)
    sys.exit(problem or 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
