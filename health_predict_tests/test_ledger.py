"""The ledger takes entries from many, loses none, and shows where it was tampered with."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from health_predict.cli import main
from health_predict.ledger import Entry, Ledger, LedgerError
from health_predict.store import Store, open_store
from health_predict.tracking import Registry

CHANGES: dict[str, Any] = {
    "number": 7,
    "at": "2001-01-01T00:00:00.000+00:00",
    "kind": "rollback",
    "who": "somebody else",
    "version": "9",
    "why": "For no reason.",
    "facts": {"auc": 0.99},
    "before": "8",
    "after": None,
    "previous": "f" * 64,
    "digest": "0" * 64,
}
"""What each field is changed to."""

KEY = "ledger.jsonl"

APPENDING = """
import sys
from health_predict.ledger import Ledger
from health_predict.store import open_store

ledger = Ledger(open_store(sys.argv[1]))
print("ready", flush=True)
input()
for number in range(int(sys.argv[3])):
    entry = ledger.append("verdict", who=sys.argv[2], why=f"Number {number}.")
    print(entry.digest, flush=True)
"""


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def fill(ledger: Ledger) -> list[Entry]:
    """Writes what becomes of a first champion and its successor."""
    run = "dagster run 1a2b3c4d"
    return [
        ledger.append("registration", who=run, why="Fitted on the initial data.", version="1"),
        ledger.append("alias_move", who=run, why="The first.", version="1", after="1"),
        ledger.append(
            "verdict", who=run, why="AUC .71 > .69.", version="2", facts={"auc": {"2": 0.71}}
        ),
        ledger.append("approval", who="A. Person", why="Subgroups [60-70) read.", version="2"),
        ledger.append(
            "alias_move", who=run, why="Live and verified.", version="2", before="1", after="2"
        ),
    ]


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTH_PREDICT_VAR", str(tmp_path))
    monkeypatch.setenv("HEALTH_PREDICT_MLFLOW_TRACKING_URI", "")


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


def content(ledger: Ledger) -> bytes:
    return ledger.store.read(KEY)


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    fill(ledger)
    return ledger


@pytest.fixture
def on_disk(tmp_path: Path) -> Ledger:
    """A filled ledger in a folder, for what does not depend on where it stands."""
    ledger = Ledger(open_store(tmp_path / "store"))
    fill(ledger)
    return ledger


def rewrite(ledger: Ledger, change: Callable[[list[str]], list[str]]) -> None:
    lines = change(content(ledger).decode().splitlines())
    ledger.store.write(KEY, "".join(f"{line}\n" for line in lines).encode())


def with_fields(line: str, **changed: Any) -> str:
    return canonical({**json.loads(line), **changed})


def with_own_digest(line: str, **changed: Any) -> str:
    """Returns the line as somebody would forge it who knows how digests are made."""
    content = {**json.loads(line), **changed}
    del content["digest"]
    return canonical({**content, "digest": hashlib.sha256(canonical(content).encode()).hexdigest()})


def forged(lines: list[str]) -> list[str]:
    """Returns a chain computed anew, in which person and reason of entry 4 differ."""
    lines = [*lines[:3], with_own_digest(lines[3], who="B. Person", why="Unread."), *lines[4:]]
    return [*lines[:4], with_own_digest(lines[4], previous=json.loads(lines[3])["digest"])]


def appending(ledger: Ledger, who: str, entries: int) -> "subprocess.Popen[str]":
    """Returns a process that is ready to append and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDING, ledger.store.uri, who, str(entries)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_chain_is_read_as_it_was_written_and_verifies(ledger):
    written = fill(ledger)
    assert ledger.entries() == written
    assert ledger.verify() == ledger.verify(written[-1].digest) == 5
    assert [entry.number for entry in written] == [1, 2, 3, 4, 5]
    assert written[0].previous == "0" * 64
    assert [e.previous for e in written[1:]] == [e.digest for e in written[:-1]]
    assert (written[4].before, written[4].after) == ("1", "2")


def test_a_ledger_without_entries_verifies_and_leaves_nothing(ledger):
    assert (ledger.entries(), ledger.verify()) == ([], 0)
    assert ledger.store.keys() == []


def test_what_was_remembered_of_a_ledger_that_is_gone_is_missed(filled):
    newest = filled.entries()[-1].digest
    filled.store.remove(KEY)
    with pytest.raises(LedgerError, match="line 1 is missing"):
        filled.verify(newest)


def test_a_copy_is_verified_where_nothing_can_be_written(filled, tmp_path):
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    (evidence / KEY).write_bytes(content(filled))
    evidence.chmod(0o500)
    assert Ledger(open_store(evidence)).verify() == 5
    assert [path.name for path in evidence.iterdir()] == [KEY]


def test_a_digest_is_that_of_the_canonical_json_whatever_the_order_of_the_facts(ledger):
    one = ledger.append("verdict", who="w", why="y", facts={"b": (1, 2.5), "a": {"d": None}})
    other = ledger.append("verdict", who="w", why="y", facts={"a": {"d": None}, "b": [1, 2.5]})
    assert one.facts == other.facts == {"a": {"d": None}, "b": [1, 2.5]}
    for entry in (one, other):
        content = {name: value for name, value in vars(entry).items() if name != "digest"}
        assert entry.digest == hashlib.sha256(canonical(content).encode()).hexdigest()
    assert [line.decode() for line in ledger.lines()] == [canonical(vars(e)) for e in (one, other)]


def test_text_beyond_ascii_and_with_newlines_stays_one_line(ledger):
    ledger.append("approval", who="Zoë Müller", why="Read:\nall\u2028of it \U0001f600.")
    assert ledger.entries()[0].why == "Read:\nall\u2028of it \U0001f600."
    assert ledger.verify() == len(content(ledger).splitlines()) == 1
    assert content(ledger).isascii()


@pytest.mark.parametrize("line", [1, 3, 5])
@pytest.mark.parametrize("name", [field.name for field in fields(Entry)])
def test_a_changed_field_is_found_and_its_line_named(on_disk, name, line):
    original = on_disk.lines()[line - 1].decode()
    has_it_already = json.loads(original)[name] == CHANGES[name]
    value = "7" if has_it_already else CHANGES[name]
    rewrite(
        on_disk,
        lambda lines: [*lines[: line - 1], with_fields(original, **{name: value}), *lines[line:]],
    )
    with pytest.raises(LedgerError, match=rf"line {line} .*restore"):
        on_disk.verify()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param(lambda x: x[1:], 1, id="first_removed"),
        pytest.param(lambda x: [*x[:2], *x[3:]], 3, id="middle_removed"),
        pytest.param(lambda x: [x[1], x[0], *x[2:]], 1, id="first_two_swapped"),
        pytest.param(lambda x: [*x[:3], x[4], x[3]], 4, id="last_two_swapped"),
        pytest.param(lambda x: [*x[:2], x[1], *x[2:]], 3, id="repeated"),
        pytest.param(
            lambda x: [*x[:3], with_own_digest(x[3], why="Forged."), *x[3:]], 5, id="inserted"
        ),
        pytest.param(
            lambda x: [*x[:2], with_own_digest(x[2], why="Forged."), *x[3:]], 4, id="forged"
        ),
        pytest.param(lambda x: [*x[:2], "", *x[2:]], 3, id="empty_line"),
        pytest.param(lambda x: [*x[:2], "not json", *x[2:]], 3, id="not_json"),
        pytest.param(lambda x: [*x[:2], "[" * 100_000, *x[2:]], 3, id="too_deep"),
        pytest.param(lambda x: [*x[:2], x[2].replace("0.71", "NaN"), *x[3:]], 3, id="nan"),
        pytest.param(lambda x: [*x[:2], x[2].replace("0.71", "1e999"), *x[3:]], 3, id="infinite"),
        pytest.param(lambda x: [*x[:2], x[2].replace(":", ": "), *x[3:]], 3, id="spaces"),
        pytest.param(
            lambda x: [*x[:2], x[2].replace("{", '{"who":"x",', 1), *x[3:]], 3, id="field_twice"
        ),
        pytest.param(lambda x: [*x[:2], with_own_digest(x[2], x=1), *x[3:]], 3, id="new_field"),
        pytest.param(lambda x: [*x[:2], with_own_digest(x[2], at=1), *x[3:]], 3, id="other_type"),
        pytest.param(
            lambda x: [*x[:2], with_own_digest(x[2], kind="x"), *x[3:]], 3, id="other_kind"
        ),
    ],
)
def test_lines_removed_moved_inserted_or_forged_are_found_and_the_first_named(filled, change, line):
    rewrite(filled, change)
    with pytest.raises(LedgerError, match=f"line {line} "):
        filled.verify()


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_entries_removed_at_the_end_are_found_with_what_was_remembered(filled, kept):
    newest = filled.entries()[-1].digest
    rewrite(filled, lambda lines: lines[:kept])
    assert filled.verify() == kept
    with pytest.raises(LedgerError, match=f"line {kept + 1} is missing.*{newest}.*restore"):
        filled.verify(newest)


def test_a_chain_computed_anew_is_found_with_what_was_remembered(filled):
    newest = filled.entries()[-1].digest
    rewrite(filled, forged)
    assert filled.verify() == 5
    with pytest.raises(LedgerError, match="the chain computed anew"):
        filled.verify(newest)


def test_entries_may_follow_the_one_that_was_remembered(filled):
    assert filled.verify(filled.entries()[2].digest) == 5


def test_an_entry_is_not_chained_to_a_line_that_was_changed(filled):
    rewrite(filled, lambda lines: [*lines[:4], lines[4].replace("Live", "Dead")])
    tampered = content(filled)
    with pytest.raises(LedgerError, match="line 5 was changed"):
        filled.append("release", who="w", why="y")
    assert content(filled) == tampered


def test_an_entry_is_not_chained_where_a_line_is_missing_before(filled):
    rewrite(filled, lambda lines: [*lines[:2], *lines[3:]])
    with pytest.raises(LedgerError, match="line 4 does not continue"):
        filled.append("release", who="w", why="y")


def test_two_processes_append_to_one_chain_at_once(ledger):
    processes = [appending(ledger, who, 100) for who in ("one", "other")]
    for process in processes:
        go(process)
    digests = [set(process.communicate(timeout=60)[0].split()) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert ledger.verify() == 200
    entries = ledger.entries()
    for who, told in zip(("one", "other"), digests, strict=True):
        own = [entry for entry in entries if entry.who == who]
        assert [entry.why for entry in own] == [f"Number {number}." for number in range(100)]
        assert {entry.digest for entry in own} == told


def test_a_reader_meets_no_half_written_line_while_another_writes(ledger):
    with appending(ledger, "one", 200) as process:
        go(process)
        counts = [0]
        while process.poll() is None:
            counts.append(ledger.verify())
        assert process.returncode == 0
    assert counts == sorted(counts)
    assert ledger.verify() == 200


def test_what_a_killed_writer_was_told_is_written_stays(ledger):
    with appending(ledger, "killed", 100_000) as process:
        go(process)
        assert process.stdout
        told = [process.stdout.readline().strip() for _ in range(20)]
        process.kill()
    ledger.append("verdict", who="next", why="The other was killed.")
    assert ledger.verify(told[-1]) > 20
    assert [entry.digest for entry in ledger.entries()][:20] == told


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_line_that_was_cut_is_named_and_nothing_is_chained_to_it(filled, left):
    whole = content(filled)
    filled.store.write(KEY, whole + filled.lines()[-1][:left])
    for look in (filled.verify, filled.entries):
        with pytest.raises(LedgerError, match=r"line 6 is not JSON.*restore the ledger"):
            look()
    with pytest.raises(LedgerError, match="line 6 is not JSON"):
        filled.append("release", who="w", why="y")
    assert content(filled).startswith(whole)
    assert len(content(filled).splitlines()) == 6


def test_a_last_line_that_lacks_only_its_newline_is_an_entry(filled):
    newest = filled.entries()[-1].digest
    filled.store.write(KEY, content(filled)[:-1])
    assert filled.verify(newest) == 5
    assert filled.append("release", who="w", why="y").previous == newest
    assert filled.verify(newest) == 6


@pytest.mark.parametrize("name", ["encounter_id", "patient_nbr"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda inner: inner,
        lambda inner: {"rows": {"first": inner}},
        lambda inner: {"rows": [0, ({"n": 1}, inner)]},
    ],
)
def test_identifiers_are_refused_wherever_they_stand_and_not_repeated(ledger, name, nest):
    with pytest.raises(LedgerError, match=f"has the key {name}") as raised:
        ledger.append("verdict", who="w", why="y", facts=nest({name: 8222157}))
    assert "8222157" not in str(raised.value)
    assert ledger.store.keys() == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"auc": {"test": math.nan}}, "facts.auc.test is nan"),
        ({"auc": [0.7, math.inf]}, r"facts.auc\[1\] is inf"),
        ({"auc": np.float64("nan")}, "facts.auc is nan"),
        ({"auc": np.float32(0.7)}, "facts.auc is of type float32"),
        ({"path": Path()}, "facts.path is of type PosixPath"),
        ({"by": {7: "x"}}, "facts.by has a key of type int"),
    ],
)
def test_facts_that_are_no_json_are_refused_by_their_place(ledger, facts, words):
    with pytest.raises(LedgerError, match=words):
        ledger.append("verdict", who="w", why="y", facts=facts)
    assert ledger.store.keys() == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "deletion"}, "its kind is none of registration, verdict"),
        ({"who": " "}, "its who is empty"),
        ({"why": ""}, "its why is empty"),
        ({"version": 3}, "its version is of type int"),
    ],
)
def test_an_entry_says_what_who_and_why(ledger, given, words):
    with pytest.raises(LedgerError, match=words):
        ledger.append(**{"kind": "verdict", "who": "w", "why": "y", **given})
    assert ledger.store.keys() == []


def run(ledger: Ledger, *arguments: str) -> Result:
    environment = {"HEALTH_PREDICT_STORE": ledger.store.uri}
    return CliRunner().invoke(main, ["ledger", *arguments], env=environment)


def test_the_command_shows_the_entries_and_verifies(filled):
    shown = run(filled)
    assert shown.exit_code == 0
    for words in (
        "dagster run 1a2b3c4d",
        "champion none -> v1",
        "champion v1 -> v2",
        "Subgroups [60-70) read.",
        "5 entries, chain verified",
    ):
        assert words in shown.stdout


def test_the_command_shows_the_newest_entries_and_verifies_all(filled):
    shown = run(filled, "--tail", "1")
    assert "Live and verified." in shown.stdout
    assert "Subgroups" not in shown.stdout
    assert "5 entries, chain verified" in shown.stdout


def test_the_command_prints_the_lines_as_they_are(filled):
    assert run(filled, "--json").stdout_bytes == content(filled)
    shown = run(filled, "--json", "--tail", "2")
    assert shown.stdout_bytes.splitlines() == filled.lines()[-2:]
    assert "5 entries, chain verified" in shown.stderr


def test_the_command_fails_naming_the_line_that_was_changed(filled):
    rewrite(
        filled, lambda lines: [*lines[:3], lines[3].replace("A. Person", "B. Person"), lines[4]]
    )
    shown = run(filled)
    assert shown.exit_code == 1
    assert "B. Person" in shown.stdout
    assert "line 4 was changed" in shown.stderr
    assert "chain verified" not in shown.output


def test_without_a_ledger_the_command_says_how_to_get_one(ledger, tmp_path):
    shown = run(ledger)
    assert shown.exit_code == 1
    assert "make demo" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_misses_what_mlflow_remembers(filled, tmp_path, monkeypatch):
    newest = filled.entries()[-1].digest
    Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlflow-artifacts")
    monkeypatch.setattr(Registry, "ledger_head", lambda registry: newest, raising=False)
    assert "5 entries, chain verified.\n" in run(filled).stdout
    rewrite(filled, lambda lines: lines[:-1])
    shown = run(filled)
    assert shown.exit_code == 1
    assert "line 5 is missing" in shown.stderr
