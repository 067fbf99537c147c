"""How fast and how dear a prediction is: our service, the limit, and what is usual.

One model behind four services: the Bento as it is shipped, prediction log on; the same scorer
behind Starlette and nothing else; FastAPI with pandas and the pipeline; `mlflow models serve`. Each
round starts each anew, one at a time and in another order, compares its scores with the pipeline's
and puts load on it. Writes `var/bench/serving.json` and a page.
"""

import csv
import http.client
import io
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks import load
from benchmarks.load import HOST, Load
from benchmarks.peers import prepared as preparing
from benchmarks.peers.prepared import MEDIA_TYPES, Prepared
from benchmarks.peers.running import (
    TRIVIAL,
    Running,
    Service,
    ServiceError,
    post,
    running,
    services,
)
from benchmarks.report import BENCH, Run, table
from health_predict.settings import Settings
from health_predict.verification import TOLERANCE

CLIENTS = (1, 8, 64)
OURS = "health_predict"
FIGURES = ("rps", "p50_ms", "p99_ms", "cpu_ms")
_BATCH_PATH = "/predict/batch"
_BATCH_SECONDS = 120.0


@dataclass
class Measured:
    """What was measured of one service, a value a round.

    Attributes:
        loads: number of clients -> loads.
        ready_s: seconds to the first score.
        memory_mib: memory after the load.
        batch: format -> rows a second; only of ours.
    """

    loads: dict[int, list[Load]] = field(default_factory=lambda: {n: [] for n in CLIENTS})
    ready_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    batch: dict[str, list[float]] = field(default_factory=dict)


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=5.0, show_default=True, help="Of load, each time.")
def main(data: str, rounds: int, seconds: float) -> None:
    """Runs the benchmark."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no service is left running
    run = Run("serving", "Predictions a second, against the limit and what is usual")
    folder = BENCH / "serving"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _say("fitting, building the Bento, logging to MLflow")
    prepared = prepare(folder, data)
    compared = services(prepared, folder)
    ceiling = _ceiling(prepared, folder, seconds)
    measured = {service.name: Measured() for service in compared}
    for number in range(rounds):
        turn = number % len(compared)
        for service in (*compared[turn:], *compared[:turn]):
            _say(f"round {number + 1} of {rounds}: {service.name}")
            _measure(service, prepared, folder, seconds, measured[service.name])
    facts = {
        **{"data": prepared.data, "sha256": prepared.sha256, "model_bytes": prepared.model_bytes},
        **{"rounds": rounds, "seconds_of_load": seconds, "load_generator": ceiling},
        "versions": {name: version(name) for name in ("bentoml", "fastapi", "mlflow", "uvicorn")},
    }
    result = told(measured, facts, len(prepared.batch_scores))
    run.publish(ratios(result), result, page(result))


def prepare(folder: Path, data: str) -> Prepared:
    """Makes what the services need, in a process of its own; returns it."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers.prepared"]
    with (folder / "prepared.log").open("wb") as log:
        done = subprocess.run([*command, str(folder), data], stdout=log, stderr=log, check=False)
    if done.returncode:
        raise click.ClickException(f"nothing to serve could be made: see {folder}/prepared.log")
    return preparing.read(folder)


def _ceiling(prepared: Prepared, folder: Path, seconds: float) -> dict[str, Any]:
    """Returns how fast the load generator asks a server that does nothing."""
    requests = _requests(TRIVIAL, prepared)
    with running(TRIVIAL, folder, b"{}") as service:
        return {
            "rps": {
                str(clients): _load(service, requests, clients, seconds).rps for clients in CLIENTS
            }
        }


def _measure(
    service: Service, prepared: Prepared, folder: Path, seconds: float, into: Measured
) -> None:
    """Starts a service, checks its scores, puts load on it and ends it."""
    first = json.dumps(service.body(prepared.encounters[0])).encode()
    with running(service, folder, first) as found:
        _check(found, prepared)
        requests = _requests(service, prepared)
        for clients in CLIENTS:
            into.loads[clients].append(_load(found, requests, clients, seconds))
        into.ready_s.append(found.ready_s)
        into.memory_mib.append(found.memory_mib())
        if service.name == OURS and _takes_batches(found):
            for name in MEDIA_TYPES:
                rate = _batch(found, name, prepared, folder)
                into.batch.setdefault(name, []).append(rate)


def _requests(service: Service, prepared: Prepared) -> list[bytes]:
    return [load.encode(service.path, service.body(one)) for one in prepared.encounters]


def _load(service: Running, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    return load.run(
        service.port,
        requests,
        clients,
        seconds=seconds,
        warm_up=max(1.0, seconds / 4),
        cpu_seconds=service.cpu_seconds,
    )


def _check(found: Running, prepared: Prepared) -> None:
    """Raises `ServiceError` unless each score is the pipeline's."""
    service = found.service
    connection = http.client.HTTPConnection(HOST, found.port, timeout=30)
    with closing(connection):
        for number, (encounter, expected) in enumerate(
            zip(prepared.encounters, prepared.scores, strict=True)
        ):
            body = json.dumps(service.body(encounter))
            connection.request("POST", service.path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                words = f"answers {response.status}: {content[:300].decode(errors='replace')}"
                raise ServiceError(f"{service.name} {words} (encounter {number}); see {found.log}")
            _agree(service.name, number, service.score(json.loads(content)), expected)


def _agree(name: str, number: int, score: float, expected: float) -> None:
    if not abs(score - expected) <= TOLERANCE:  # also where it is not a number
        raise ServiceError(
            f"{name} scores encounter {number} as {score:.7f}, the pipeline {expected:.7f}: "
            "what does not agree is not timed"
        )


def _takes_batches(found: Running) -> bool:
    # Asked with a small body: a large one would be cut off before a refusal could be read.
    status, _ = post(found.port, _BATCH_PATH, b"[]", MEDIA_TYPES["json"], _BATCH_SECONDS)
    return status != 404


def _batch(found: Running, name: str, prepared: Prepared, folder: Path) -> float:
    """Returns rows a second of a batch in one format."""
    content = (folder / f"batch.{name}").read_bytes()
    began = time.perf_counter()
    status, answer = post(found.port, _BATCH_PATH, content, MEDIA_TYPES[name], _BATCH_SECONDS)
    lasted = time.perf_counter() - began
    if status != 200:
        words = f"answers {status} to a batch as {name}: {answer[:300].decode(errors='replace')}"
        raise ServiceError(f"{found.service.name} {words}; see {found.log}")
    scores = _SCORES[name](answer)
    for number, (score, expected) in enumerate(zip(scores, prepared.batch_scores, strict=True)):
        _agree(f"{found.service.name} as {name}", number, score, expected)
    return len(scores) / lasted


def _of_json(answer: bytes) -> list[float]:
    return [row["probability_score"] for row in json.loads(answer)]


def _of_csv(answer: bytes) -> list[float]:
    rows = csv.DictReader(io.StringIO(answer.decode()))
    return [float(row["probability_score"]) for row in rows]


def _of_parquet(answer: bytes) -> list[float]:
    from pyarrow import parquet

    scores: list[float] = parquet.read_table(io.BytesIO(answer))["probability_score"].to_pylist()
    return scores


_SCORES: dict[str, Callable[[bytes], list[float]]] = {
    "json": _of_json,
    "csv": _of_csv,
    "parquet": _of_parquet,
}


def told(measured: dict[str, Measured], facts: dict[str, Any], rows: int) -> dict[str, Any]:
    """Returns the medians over the rounds.

    Args:
        measured: service -> what was measured.
        facts: what it was measured on, and how.
        rows: rows of a batch.
    """
    ours = measured[OURS]
    shares = [one.client_share for m in measured.values() for n in CLIENTS for one in m.loads[n]]
    facts["load_generator"]["largest_share_of_a_core"] = max(shares)
    return {
        "circumstances": facts,
        "compared": {
            name: {
                str(clients): _over_rounds(
                    [
                        a.rps / b.rps
                        for a, b in zip(ours.loads[clients], other.loads[clients], strict=True)
                    ]
                )
                for clients in CLIENTS
            }
            for name, other in measured.items()
            if name != OURS
        },
        **{name: _service(one) for name, one in measured.items()},
        "batch": {
            "rows": rows,
            "rows_per_s": {name: _over_rounds(rates) for name, rates in ours.batch.items()},
        },
    }


def _service(measured: Measured) -> dict[str, Any]:
    return {
        **{
            str(clients): {
                **{
                    figure: statistics.median(asdict(one)[figure] for one in loads)
                    for figure in FIGURES
                },
                "errors": sum(one.errors for one in loads),
            }
            for clients, loads in measured.loads.items()
        },
        "ready_s": statistics.median(measured.ready_s),
        "memory_mib": statistics.median(measured.memory_mib),
    }


def _over_rounds(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Returns our requests a second over those of each other service."""
    return {
        f"requests/s to {name}, {_clients(clients)}": by_clients[str(clients)]["median"]
        for name, by_clients in result["compared"].items()
        for clients in CLIENTS
    }


def page(result: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    facts, names = result["circumstances"], [OURS, *result["compared"]]
    cells = [(name, n, result[name][str(n)]) for name in names for n in CLIENTS]
    batch = result["batch"]
    rates = [(name, _range(r, ",.0f")) for name, r in batch["rows_per_s"].items()]
    asked = facts["load_generator"]
    ceiling = ", ".join(f"{rps:,.0f} with {n}" for n, rps in asked["rps"].items())
    return "\n\n".join(
        [
            f"{facts['data']}, XGBoost of the default size, one worker each, {facts['rounds']} "
            "rounds: median (range).",
            table(
                (f"requests/s of {OURS} over", *map(_clients, CLIENTS)),
                [
                    (name, *(_range(by_clients[str(n)], ".2f") for n in CLIENTS))
                    for name, by_clients in result["compared"].items()
                ],
            ),
            table(
                ("service", "clients", "requests/s", "p50 ms", "p99 ms", "CPU ms", "errors"),
                [
                    (
                        *(name, n, f"{one['rps']:,.0f}", f"{one['p50_ms']:.2f}"),
                        *(f"{one['p99_ms']:.2f}", f"{one['cpu_ms']:.2f}", one["errors"]),
                    )
                    for name, n, one in cells
                ],
            ),
            table(
                ("service", "ready after s", "MiB after load"),
                [
                    (n, f"{result[n]['ready_s']:.1f}", f"{result[n]['memory_mib']:,.0f}")
                    for n in names
                ],
            ),
            table(
                (f"{OURS}, batch of {batch['rows']:,}", "rows/s"),
                rates or [(f"{_BATCH_PATH} answers 404: not measured", "")],
            ),
            "Clients ask again once they are answered; scores were compared with the pipeline's "
            f"before. The load generator asks a server that does nothing so often a second: "
            f"{ceiling} clients; here it took at most {asked['largest_share_of_a_core']:.0%} of a "
            "core.",
        ]
    )


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _range(values: dict[str, float], style: str) -> str:
    median, low, high = (format(values[name], style) for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _say(words: str) -> None:
    click.echo(words, err=True)


if __name__ == "__main__":
    main()
