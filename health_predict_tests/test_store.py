"""The store keeps bytes whole, in a folder as in a bucket, whoever is killed or comes between."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from health_predict import store as stores
from health_predict.settings import Settings
from health_predict.store import Store, StoreError, StoreMissing, open_store

COUNTING = """
import json, sys
from health_predict.store import open_store

store = open_store(sys.argv[1])
print("ready", flush=True)
input()
for _ in range(25):
    store.update("count.json", lambda held: json.dumps(json.loads(held or b"0") + 1).encode())
"""

WRITING = """
import sys
from health_predict.store import open_store

store = open_store(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in b"ab":
        store.write("big/value.bin", bytes([letter]) * 3_000_000)
"""

HOLDING = """
import sys, time
from health_predict.store import open_store

with open_store(sys.argv[1]).locked("alerts.json"):
    print("held", flush=True)
    time.sleep(600)
"""


def python(source: str, store: Store) -> "subprocess.Popen[str]":
    """Returns a process on the store that has said its first word."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, store.uri],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline()
    return process


def test_what_was_written_is_read_back_and_written_over(store: Store) -> None:
    store.write("initial.parquet", b"one")
    store.write("initial.parquet", b"other")
    assert store.read("initial.parquet") == b"other"
    assert store.exists("initial.parquet")


def test_a_key_that_holds_nothing_is_named_by_its_place(store: Store) -> None:
    assert not store.exists("drift_report/batch-0001.json")
    with pytest.raises(StoreMissing, match=r"drift_report/batch-0001\.json is not there"):
        store.read("drift_report/batch-0001.json")


def test_keys_come_in_order_below_a_folder_and_hidden_ones_are_none(store: Store) -> None:
    for key in ("b/2.json", "b/1.json", "bb/1.json", "a.json"):
        store.write(key, b"{}")
    with store.locked("b/1.json"):
        assert store.keys("b/") == ["b/1.json", "b/2.json"]
        assert store.keys() == ["a.json", "b/1.json", "b/2.json", "bb/1.json"]
    assert store.keys("c/") == []


def test_more_keys_than_one_page_of_s3_holds_are_all_there(bucket: str) -> None:
    store = open_store(f"s3://{bucket}")
    keys = [f"served/served-{number:05d}.jsonl" for number in range(1_010)]
    for key in keys:
        store.write(key, b"")
    assert store.keys("served/") == keys


def test_a_removed_key_holds_nothing_and_may_be_removed_again(store: Store) -> None:
    store.write("a.json", b"{}")
    store.remove("a.json")
    store.remove("a.json")
    assert store.keys() == []


def test_of_two_that_create_the_first_one_stays(store: Store) -> None:
    assert store.create("served/served-0001.jsonl", b"first")
    assert not store.create("served/served-0001.jsonl", b"second")
    assert store.read("served/served-0001.jsonl") == b"first"
    assert store.keys() == ["served/served-0001.jsonl"]


def test_processes_that_change_one_value_at_a_time_lose_no_change(store: Store) -> None:
    processes = [python(COUNTING, store) for _ in range(3)]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert json.loads(store.read("count.json")) == 75


def test_a_writer_that_is_killed_leaves_a_whole_value(store: Store) -> None:
    for _ in range(5):
        process = python(WRITING, store)
        while not store.exists("big/value.bin"):
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        content = store.read("big/value.bin")
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
        assert store.keys() == ["big/value.bin"]


def test_the_lock_of_a_killed_holder_is_let_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LEASE_SECONDS", 1.0)
    process = python(HOLDING, store)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with store.locked("alerts.json"):
        store.write("alerts.json", b"[]")
    assert store.keys() == ["alerts.json"]


def test_a_lock_that_is_held_is_not_taken(store: Store) -> None:
    process = python(HOLDING, store)
    taker = python(HOLDING.replace("with ", "print(1, flush=True)\nwith "), store)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            taker.communicate(timeout=1.5)
    finally:
        for one in (process, taker):
            one.kill()
            one.wait()


@pytest.mark.parametrize("key", ["/etc/passwd", "../outside", "a/../../b"])
def test_a_key_that_leaves_the_store_is_refused(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="is no key of a store"):
        store.write(key, b"")


@pytest.mark.parametrize("address", ["s3://", "gs://bucket/x", "http://host/x"])
def test_an_address_that_is_no_store_is_refused(address: str) -> None:
    with pytest.raises(StoreError, match=r"is a folder or s3://bucket/prefix"):
        open_store(address)


def test_settings_keep_everything_under_var_unless_a_store_is_named(tmp_path: Path) -> None:
    assert Settings(var=tmp_path).store_uri == str(tmp_path / "store")
    away = Settings(var=tmp_path, store="s3://bucket/prefix/")
    assert away.store_uri == "s3://bucket/prefix/"
    assert away.artifacts == "s3://bucket/prefix/mlflow-artifacts"
    with pytest.raises(ValueError, match="store"):
        Settings(var=tmp_path, store="gs://bucket")


def test_a_bucket_that_is_not_there_is_named_with_the_remedy(bucket: str) -> None:
    store = open_store("s3://nobodys-bucket/prefix")
    with pytest.raises(StoreError, match=r"s3://nobodys-bucket/prefix: there is no such bucket"):
        store.write("a.json", b"{}")


def test_an_endpoint_nobody_listens_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed)
    with pytest.raises(StoreError, match=r"S3 cannot be reached.*AWS_ENDPOINT_URL_S3"):
        open_store("s3://bucket").read("a.json")


def test_missing_credentials_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StoreError, match="there are no credentials"):
        open_store(f"s3://{bucket}").read("a.json")
