"""Whatever is sent to the running service, it answers as described, goes on, and stays as it was.

More than 20,000 mutated requests over connections that are kept, bodies of 10 MB and ones that
never end among them. Each is answered, with a described status and in its described shape; the
example is scored as ever; and the second half of them leaves no memory behind.
"""

import http.client
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import pytest
from pydantic import TypeAdapter, ValidationError

from health_predict.schema import EXAMPLE
from health_predict.serving.batches import Csv, Json, Parquet
from health_predict.serving.messages import Answer, Record, Refusal
from health_predict_tests import bentos, mutations
from health_predict_tests.mutations import Attempt, Mutator
from health_predict_tests.served_bento import Reply, Served, serve
from health_predict_tests.wire import BATCH, HANG_SECONDS, SINGLE, Line, request

ATTEMPTS = 21_000
CONNECTIONS = 4
SEED = 20
DESCRIBED = {200, 401, 404, 405, 408, 413, 415, 422, 503}
"""By `/openapi.json`; 404 is what no path of it is answered with."""
# Of the HTTP server: what is no HTTP gets 400, a websocket, which there is none of, 403.
TO_NO_HTTP = {400, 403}
PARQUET_ENDS = b"PAR1"
PARQUET = 2
"""Of a hundred attempts: to read and write such a file takes fifty times as long."""
ROUNDS = 10
KEPT_OF_HALF = 16 * 2**20
"""Bytes: BentoML keeps a timer of .8 kB for 45 s of each of 10,500 requests, up to 8 MB together;
if what was sent were kept as well, it would be 60 MB more, and 11 MB if only 1 kB each."""
KEPT_OF_LARGE = 64 * 2**20
"""Bytes: DuckDB was seen to keep 45 MB or to give them back; a kind kept each time is 100 MB."""
records_of = TypeAdapter(list[Record])


@dataclass
class Log:
    """What came of attempts.

    Attributes:
        answers: by status and kind.
        complaints: what should not have happened.
        attempts: how many were sent.
    """

    answers: Counter[tuple[int | None, str]] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        return self.answers.total()

    @property
    def statuses(self) -> set[int | None]:
        return {status for status, _ in self.answers}

    def __iadd__(self, other: "Log") -> "Log":
        self.answers += other.answers
        self.complaints += other.complaints
        return self

    def note(self, attempt: Attempt, reply: Reply | None, complaint: str) -> None:
        self.answers[reply.status if reply else None, attempt.kind] += 1
        if complaint:
            said = reply.content[:300] if reply else b""
            self.complaints.append(
                f"{attempt.kind}: {complaint}\nasked: {attempt.content[:400]!r}\nsaid: {said!r}"
            )


@dataclass(frozen=True)
class Judge:
    """Says what is wrong with an answer; the example must get `score`."""

    score: float

    def complaint(self, attempt: Attempt, reply: Reply | None) -> str:
        """Returns what is wrong, an empty string if nothing is."""
        if reply is None:
            return "" if not attempt.is_http else "the connection was closed without an answer"
        if not attempt.is_http and reply.status in TO_NO_HTTP:
            return ""
        if reply.status not in DESCRIBED:
            return f"status {reply.status} is not described"
        try:
            return self._content(attempt, reply)
        except (ValidationError, ValueError) as error:
            return f"the answer of status {reply.status} is not of its shape: {error}"

    def _content(self, attempt: Attempt, reply: Reply) -> str:
        if "x-request-id" not in reply.headers:
            return "it has no request id"
        if attempt.method == "HEAD":
            return "it has a body" if reply.content else ""
        if reply.status != 200:
            Refusal.model_validate_json(reply.content)
        elif attempt.path == SINGLE:
            Answer.model_validate_json(reply.content)
        elif attempt.path == BATCH:
            return self._batch(attempt, reply.content)
        if attempt.is_golden:
            return self._golden(reply)
        return ""

    def _golden(self, reply: Reply) -> str:
        if reply.status != 200 or reply.json["probability_score"] != self.score:
            return f"the example does not get the score {self.score}"
        return ""

    def _batch(self, attempt: Attempt, content: bytes) -> str:
        if attempt.media_type == Json.media_type:
            records = records_of.validate_json(content)
            if attempt.rows not in (None, len(records)):
                return f"{len(records)} records for {attempt.rows} rows"
        elif attempt.media_type == Csv.media_type:
            return "" if content.startswith(b"row,prediction,") else "it has no header"
        elif attempt.media_type == Parquet.media_type:
            ends = content[:4] == content[-4:] == PARQUET_ENDS
            return "" if ends else "it is no Parquet file"
        return ""


def send(served: Served, judge: Judge, attempts: Iterator[Attempt]) -> Log:
    """Sends attempts over one connection after another."""
    log, line = Log(), Line(served.port)
    for attempt in attempts:
        try:
            reply = line.ask(attempt.content, attempt.method, attempt.is_http)
        except TimeoutError:
            log.note(attempt, None, f"no answer within {HANG_SECONDS:.0f} s")
        else:
            log.note(attempt, reply, judge.complaint(attempt, reply))
    line.close()
    return log


def drawn(seed: int, many: int, parquet: int) -> Iterator[Attempt]:
    """Yields attempts of one connection."""
    mutator = Mutator(seed, parquet)
    return (mutator.draw() for _ in range(many))


def spread(served: Served, judge: Judge, seed: int, many: int, parquet: int) -> Log:
    """Sends many attempts over all connections at a time."""
    share, log = many // CONNECTIONS, Log()
    with ThreadPoolExecutor(CONNECTIONS) as connections:
        for sent in [
            connections.submit(send, served, judge, drawn(seed + number, share, parquet))
            for number in range(CONNECTIONS)
        ]:
            log += sent.result()
    return log


def never_ending(served: Served, trickling: bool) -> int:
    """Sends half a request, then a byte a second or nothing; returns the status."""
    with socket.create_connection((bentos.HOST, served.port), HANG_SECONDS) as line:
        line.sendall(request(b" " * 1_000)[:-900])
        while trickling and not select.select([line], [], [], 1.0)[0]:
            line.sendall(b" ")
        response = http.client.HTTPResponse(line)
        response.begin()
        return response.status


@dataclass(frozen=True)
class Campaign:
    """What came of all attempts, and of the service.

    Attributes:
        served: the service they went to.
        log: what came of them.
        memory: bytes of the worker after the first half, after the second, and after the large.
        unended: statuses of bodies that never ended.
    """

    served: Served
    log: Log
    memory: tuple[int, int, int]
    unended: list[int]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """Sends it all.

    Large bodies and Parquet come in the first half, which warms up whatever keeps memory for later,
    and once more at the end: what malloc keeps of them would hide what the second half leaves.
    """
    folder = tmp_path_factory.mktemp("fuzz")
    home, _ = bentos.store(folder)
    with serve(home, "readmission:1", folder / "served") as served:
        judge = Judge(served.ask(SINGLE, EXAMPLE).json["probability_score"])
        with ThreadPoolExecutor(2) as sleepy:
            unended = [sleepy.submit(never_ending, served, slow) for slow in (True, False)]
            log = send(served, judge, iter(mutations.large(Random(SEED))))
            log += spread(served, judge, SEED, ATTEMPTS // 2, PARQUET)
            first = settled(served, judge)
            log += spread(served, judge, SEED + CONNECTIONS, ATTEMPTS // 2, 0)
            second = settled(served, judge)
            for number in range(ROUNDS):
                log += send(served, judge, iter(mutations.large(Random(number), scored=False)))
                log += send(served, judge, drawn_parquet(number))
            memory = (first, second, settled(served, judge))
            statuses = [one.result() for one in unended]
        yield Campaign(served, log, memory, statuses)


def settled(served: Served, judge: Judge) -> int:
    """Returns the worker's memory after some time of usual requests."""
    usual = send(served, judge, (mutations.golden() for _ in range(300)))
    assert usual.complaints == []
    time.sleep(1.0)  # the prediction log is written
    return served.memory


def drawn_parquet(seed: int) -> Iterator[Attempt]:
    mutator = Mutator(seed, 0)
    return (mutator.parquet_batch() for _ in range(10))


def test_whatever_is_sent_is_answered_as_described(campaign):
    assert "\n\n".join(campaign.log.complaints[:10]) == ""
    assert campaign.log.attempts >= 20_000
    assert {200, 400, 404, 405, 413, 415, 422} <= campaign.log.statuses


def test_a_body_that_never_ends_is_not_waited_for(campaign):
    assert campaign.unended == [408, 408]


def test_nothing_went_wrong_inside(campaign):
    """What breaks while an answer is streamed has had its status 200 before."""
    log = campaign.served.log.read_text(errors="replace")
    assert "Traceback" not in log
    assert "[ERROR]" not in log
    assert campaign.served.worker.is_running()


def test_the_example_is_scored_as_before(campaign):
    golden = [n for (status, kind), n in campaign.log.answers.items() if kind == "golden"]
    assert sum(golden) > 500  # each of them was compared
    assert campaign.log.answers[200, "golden"] == sum(golden)
    assert campaign.served.ask("/health").json["status"] == "healthy"


def test_what_was_sent_leaves_no_memory_behind(campaign):
    first, second, last = campaign.memory
    assert second - first < KEPT_OF_HALF
    assert last - second < KEPT_OF_LARGE
