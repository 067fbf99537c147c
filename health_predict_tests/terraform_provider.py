"""A provider that Terraform can talk to and that knows one thing: the AWS provider's schema.

Terraform itself then checks the configuration: names, types, references, what is required, and
with `mock_provider` in a test file it plans and applies with values made up. The real provider,
which cannot be had here, would also check what values it accepts. It speaks Terraform's plugin
protocol 6 (gRPC); Terraform is told where it listens by TF_REATTACH_PROVIDERS, so it looks for no
plugin and asks no registry.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from health_predict_tests.terraform_schema import SCHEMA

NAME = "registry.terraform.io/hashicorp/aws"
_NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serves the schema on this machine; gives the value of TF_REATTACH_PROVIDERS."""
    server = grpc.server(
        ThreadPoolExecutor(max_workers=4), options=[("grpc.max_receive_message_length", -1)]
    )
    server.add_generic_rpc_handlers((_Provider(json.loads(SCHEMA.read_text())),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield json.dumps(
            {
                NAME: {
                    "Protocol": "grpc",
                    "ProtocolVersion": 6,
                    "Pid": os.getpid(),
                    "Test": True,
                    "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
                }
            }
        )
    finally:
        server.stop(grace=None).wait()


class _Provider(grpc.GenericRpcHandler):
    """Answers with the schema, and finds every configuration that fits it valid."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._answers = {"GetProviderSchema": _schemas(schema)}
        for what in ("Provider", "Resource", "DataResource", "EphemeralResource"):
            self._answers[f"Validate{what}Config"] = b""  # no diagnostics

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        answer = self._answers.get(call.method.rpartition("/")[2])
        if answer is None:
            return None  # UNIMPLEMENTED
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


# The messages of tfplugin6.proto, by field number, as protocol buffers are written.


def _schemas(schema: dict[str, Any]) -> bytes:
    return (
        _message(1, _schema(schema["provider"]))
        + _entries(2, schema["resource_schemas"])
        + _entries(3, schema["data_source_schemas"])
    )


def _entries(field: int, schemas: dict[str, Any]) -> bytes:
    return b"".join(
        _message(field, _message(1, name.encode()) + _message(2, _schema(schema)))
        for name, schema in schemas.items()
    )


def _schema(schema: dict[str, Any]) -> bytes:
    return _message(2, _block(schema["block"]))


def _block(block: dict[str, Any]) -> bytes:
    attributes = (
        _message(1, name.encode())
        + _message(2, json.dumps(attribute["type"]).encode())
        + _number(4, attribute.get("required", False))
        + _number(5, attribute.get("optional", False))
        + _number(6, attribute.get("computed", False))
        for name, attribute in block["attributes"].items()
    )
    nested = (
        _message(1, name.encode())
        + _message(2, _block(inner["block"]))
        + _number(3, _NESTING[inner["nesting_mode"]])
        + _number(4, inner.get("min_items", 0))
        + _number(5, inner.get("max_items", 0))
        for name, inner in block.get("block_types", {}).items()
    )
    return b"".join(
        [*(_message(2, each) for each in attributes), *(_message(3, each) for each in nested)]
    )


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value)) if value else b""


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])
