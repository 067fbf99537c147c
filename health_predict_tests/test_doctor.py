"""The doctor on this machine: checks that hang or break, settings, versions, disk, ports, words."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from health_predict import encounters, processes
from health_predict.alerts import Alert, Outbox
from health_predict.cli import main
from health_predict.doctoring import folder, ports, shown, stores, variables, versions
from health_predict.doctoring.finding import Check, Finding, Once, examine, told
from health_predict.settings import Settings
from health_predict.settings_table import PREFIX, known
from health_predict.store import open_store
from health_predict_tests.receivers import receiving

LISTENING = """
import socket, time
with socket.create_server(("127.0.0.1", int(__import__("sys").argv[1]))):
    print("listening", flush=True)
    time.sleep(600)
"""


def found(*findings: Finding) -> Finding:
    """Returns the one finding there is."""
    (finding,) = findings
    return finding


@contextmanager
def listening(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yields a process that listens, and its port."""
    port = port or free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "listening\n"
        yield process, port
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- how checks are made -------------------------------------------------------------------------


def test_a_check_that_hangs_is_wrong_and_holds_nobody_up() -> None:
    hung = threading.Event()
    children: list[int] = []

    def hang() -> Iterator[Finding]:
        with subprocess.Popen(["sleep", "600"]) as process:
            children.append(process.pid)
            hung.wait()
            yield Finding("slow", "ok", "in the end")

    before = {child.pid for child in psutil.Process().children()}
    slow = Check("slow", hang, "wake it", seconds=0.3)
    quick = Check("quick", lambda: [Finding("quick", "ok", "here")], "nothing")
    first, second = examine([slow, quick])
    assert first == Finding("slow", "wrong", "no answer within 0 s", "wake it")
    assert second.state == "ok"
    (child,) = children
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != "zombie":
        assert time.monotonic() < deadline, "what the check had started was left behind"
        time.sleep(0.05)
    assert before <= {each.pid for each in psutil.Process().children()}
    hung.set()


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on() -> None:
    def break_() -> Iterator[Finding]:
        raise ZeroDivisionError("by\n nothing")

    broken = Check("broken", break_, "mend it")
    absent = Check("absent", lambda: [], "install it", imports=("no_such_module",))
    whole = Check("whole", lambda: [Finding("whole", "ok", "yes")], "nothing")
    first, second, third = examine([broken, absent, whole])
    assert first == Finding("broken", "wrong", "ZeroDivisionError: by nothing", "mend it")
    assert second.seen == "ModuleNotFoundError: No module named 'no_such_module'"
    assert third.state == "ok"


def test_a_secret_is_shown_by_no_finding_whoever_brought_it_in() -> None:
    def leak() -> Iterator[Finding]:
        yield Finding("one", "wrong", "refused hunter2-and-more", "ask for hunter2")
        raise ValueError("hunter2 is wrong")

    def tell() -> Iterator[Finding]:
        yield Finding("two", "wrong", "refused hunter2-and-more", "ask for hunter2")

    findings = examine(
        [Check("one", leak, "hunter2"), Check("two", tell, "-")], {"hunter2", "hunter2-and", ""}
    )
    assert "hunter2" not in repr(findings)
    assert findings[1] == Finding("two", "wrong", "refused ***-more", "ask for ***")


def test_what_several_checks_need_is_found_out_once() -> None:
    calls: list[int] = []

    def find() -> int:
        calls.append(1)
        time.sleep(0.05)
        return 7

    once = Once(find)
    looks = [Check(str(n), lambda: [Finding("n", "ok", str(once()))], "-") for n in range(5)]
    assert {finding.seen for finding in examine(looks)} == {"7"}
    assert len(calls) == 1
    broken = Once(lambda: 1 // 0)
    assert broken.if_known() is None
    with pytest.raises(ZeroDivisionError):
        broken()


def test_what_is_wrong_has_a_remedy() -> None:
    with pytest.raises(ValueError, match="nothing is said against it"):
        Finding("disk", "wrong", "full")


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("no bucket: make it (by hand) or not", ("no bucket", "make it (by hand) or not")),
        ("a: b: set X (make: X=...) to c", ("a: b", "set X (make: X=...) to c")),
        ("down (since: ever); start it", ("down (since: ever)", "start it")),
        ("just words", ("just words", "")),
    ],
)
def test_an_error_is_told_as_cause_and_remedy(message: str, parts: tuple[str, str]) -> None:
    assert told(RuntimeError(message)) == parts


# --- settings ------------------------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment with a state folder of its own and nothing else of ours."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv(f"{PREFIX}VAR", str(tmp_path / "var"))
    return monkeypatch


def test_a_wrong_value_is_named_with_what_it_takes(clean: pytest.MonkeyPatch) -> None:
    clean.setenv(f"{PREFIX}DEPLOYMENT", "moon")
    clean.setenv(f"{PREFIX}PORT", "99999")
    settings, findings = variables.read()
    assert settings is None
    by_name = {finding.seen.partition(":")[0]: finding for finding in findings}
    assert set(by_name) == {f"{PREFIX}DEPLOYMENT", f"{PREFIX}PORT"}
    assert "'local', 'host' or 'kubernetes'" in by_name[f"{PREFIX}DEPLOYMENT"].seen
    assert all(finding.remedy.startswith("correct it") for finding in findings)


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    misspelt = {f"{PREFIX}TRIALZ": "3", f"{PREFIX}Q": "1", "TRIALZ": "x", f"{PREFIX}TRIALS": "3"}
    far, near = variables.misspelt(misspelt)
    assert (near.seen, near.remedy) == (
        f"{PREFIX}TRIALZ is read by nothing",
        f"write {PREFIX}TRIALS, or unset it",
    )
    assert far.seen.startswith(f"{PREFIX}Q ")
    assert "docs/settings.md" in far.remedy
    assert list(variables.misspelt(dict.fromkeys(known(), ""))) == []


def test_a_value_that_the_state_keeps_is_told_from_one_of_the_environment(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "var" / "settings.json"
    kept.parent.mkdir()
    kept.write_text('{"trials": 1}')
    settings, (finding,) = variables.read()
    assert settings is None
    assert f"{PREFIX}TRIALS" in finding.seen
    assert str(kept) in finding.remedy
    kept.write_text("{")
    assert "cannot be read" in found(*variables.read()[1]).seen
    kept.unlink()
    assert variables.read()[0] == Settings()


def test_a_deployment_without_its_database_is_named(clean: pytest.MonkeyPatch) -> None:
    finding = found(*variables.look(Settings(deployment="host"), {}))
    assert finding.state == "wrong"
    assert f"{PREFIX}POSTGRES" in finding.remedy
    assert found(*variables.look(Settings(), {})).state == "ok"


def test_secrets_are_known_wherever_they_stand(clean: pytest.MonkeyPatch) -> None:
    clean.setenv(f"{PREFIX}POSTGRES", "postgresql://u:p%40ss-one@h/d")
    clean.setenv(f"{PREFIX}MLFLOW_TRACKING_URI", "https://u:pass-two@h")
    clean.setenv(f"{PREFIX}SERVICE_TOKEN", "pass-three")
    clean.setenv("AWS_SECRET_ACCESS_KEY", "pass-four")
    passwords = {"p@ss-one", "p%40ss-one", "pass-two", "pass-three", "pass-four"}
    assert passwords <= variables.secrets(Settings())
    assert passwords <= variables.secrets(None)
    printed = CliRunner().invoke(main, ["settings"]).output
    assert f"{PREFIX}MLFLOW_TRACKING_URI=https://u:***@h" in printed
    assert not any(password in printed for password in passwords)


# --- versions ------------------------------------------------------------------------------------


def test_the_lock_file_is_what_is_installed() -> None:
    assert found(*versions.packages()).state == "ok"
    assert {"dagster", "mlflow", "click", "boto3"} <= versions.needed()
    assert "pytest" not in versions.needed()


def test_another_version_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(versions.LOCK.read_text().replace("\nclick==", "\nclick==99.1+was."))
    finding = found(*versions.packages(lock))
    assert "click is " in finding.seen
    assert "locked is 99.1+was." in finding.seen
    assert f"--require-hashes -r {lock}" in finding.remedy
    monkeypatch.setattr(versions, "needed", lambda: {"no-such-package"})
    assert "no-such-package is missing" in found(*versions.packages()).seen


def test_a_python_that_is_not_tested_is_named() -> None:
    assert found(*versions.python()).state == "ok"
    finding = found(*versions.python((3, 14, 0)))
    assert "3.14.0 at" in finding.seen
    assert "PYTHON=python3.11" in finding.remedy


# --- disk and state folder -----------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes, mounted for the test alone."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=30k", "tmpfs", str(place)]
    if os.getuid() or not shutil.which("mount"):
        pytest.skip("to mount a small file system takes root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_seen_by_writing(mounted: Path) -> None:
    settings = Settings(var=mounted)
    assert found(*folder.disk(settings, least_free=0)).state == "ok"
    with (mounted / "ballast").open("wb") as ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(bytes(100_000))
    finding = found(*folder.disk(settings, least_free=0))
    assert finding.state == "wrong"
    assert "a file cannot be written: No space left on device" in finding.seen
    assert "enlarge the disk" in finding.remedy
    assert [path.name for path in mounted.iterdir()] == ["ballast"]


def test_a_disk_that_will_not_last_is_wrong_before_it_is_full(mounted: Path) -> None:
    finding = found(*folder.disk(Settings(var=mounted / "not" / "there")))
    assert finding.seen.startswith("disk full: 4.2 MB free of 4.2 MB")
    assert "a loop needs 2.0 GB" in finding.seen


def test_a_disk_without_room_for_names_is_full_too(mounted: Path) -> None:
    for number in range(21_000):
        (mounted / str(number)).touch()
    finding = found(*folder.disk(Settings(var=mounted), least_free=0))
    assert "more files (inodes)" in finding.seen


def test_a_disk_that_was_mounted_read_only_is_told_from_a_full_one(mounted: Path) -> None:
    (mounted / "dagster").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    finding = found(*folder.disk(Settings(var=mounted), least_free=0))
    assert "Read-only file system" in finding.seen
    assert "mount" in finding.remedy
    locked = found(*folder.permissions(Settings(var=mounted)))
    assert locked.state == "wrong"
    assert "not writable for user" in locked.seen


def test_a_state_that_everybody_may_change_is_wrong(tmp_path: Path) -> None:
    var = tmp_path / "var"
    assert found(*folder.permissions(Settings(var=var))).state == "off"
    (var / "store").mkdir(parents=True)
    assert found(*folder.permissions(Settings(var=var))).state == "ok"
    (var / "store").chmod(0o777)
    finding = found(*folder.permissions(Settings(var=var)))
    assert "writable for everybody" in finding.seen
    assert finding.remedy == f"chmod -R o-w {var}"


# --- ports ---------------------------------------------------------------------------------------


@pytest.fixture
def own_ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Ports that nobody else on this machine uses meanwhile."""
    monkeypatch.setattr(ports, "DAGIT", free_port())
    monkeypatch.setattr(ports, "MLFLOW", free_port())
    return Settings(var=tmp_path, port=free_port())


def test_a_taken_port_is_named_with_who_has_it(own_ports: Settings) -> None:
    assert {finding.seen for finding in ports.look(own_ports, {})} == {"free"}
    with listening(own_ports.port) as (process, port), listening(ports.DAGIT) as (dagit, _):
        service, web, mlflow = ports.look(own_ports, {"dagit": dagit.pid})
        assert service.part == f"port {port} (service)"
        assert service.state == "wrong"
        assert service.seen.startswith("port taken by python")
        assert f"process {process.pid}" in service.seen
        assert "HEALTH_PREDICT_PORT" in service.remedy
        assert (web.state, web.seen) == ("ok", f"held by our Dagit (process {dagit.pid})")
        assert mlflow.state == "ok"
        assert [each.state for each in ports.look(own_ports, {})] == ["wrong", "wrong", "ok"]


def test_a_port_held_by_a_child_of_ours_is_ours(own_ports: Settings) -> None:
    with listening(ports.MLFLOW):
        *_, mlflow = ports.look(own_ports, {"mlflow": os.getpid()})
    assert mlflow.state == "ok"


def test_ports_are_looked_at_where_they_are_needed_alone(own_ports: Settings) -> None:
    host = own_ports.model_copy(update={"deployment": "host"})
    assert [each.part for each in ports.look(host, {})] == [f"port {host.port} (service)"]
    cluster = own_ports.model_copy(update={"deployment": "kubernetes"})
    assert list(ports.look(cluster, {})) == []


def test_the_ports_are_those_that_dev_opens() -> None:
    defaults = {option.name: option.default for option in main.commands["dev"].params}
    assert (defaults["port"], defaults["mlflow_port"]) == (ports.DAGIT, ports.MLFLOW)


# --- sources and alerts --------------------------------------------------------------------------


def test_a_source_that_is_not_there_is_named(tmp_path: Path, csv_server: str) -> None:
    def look(data: str) -> Finding:
        return found(*stores.source(Settings(data=data)))

    absent = look(str(tmp_path / "absent.csv"))
    assert absent.state == "wrong"
    assert "no file at" in absent.seen
    assert absent.remedy.startswith("set HEALTH_PREDICT_DATA")
    (tmp_path / "there.csv").write_text("a,b\n")
    assert look(str(tmp_path / "there.csv")).state == "ok"
    assert look(f"{csv_server}/there.csv").state == "ok"
    assert look(f"{csv_server}/gone.csv").seen.endswith("answers 404")
    refused = look(f"http://127.0.0.1:{free_port()}/a.csv")
    assert "nothing listens at" in refused.seen
    assert look("synthetic").state == "ok"


def test_the_archive_is_asked_where_it_is_published(
    csv_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "UCI_ARCHIVE", f"{csv_server}/gone.csv")
    finding = found(*stores.source(Settings(data="uci")))
    assert finding.seen == f"{csv_server}/gone.csv answers 404"
    assert encounters.UCI_ARCHIVE.startswith("https://")


@pytest.fixture
def csv_server(tmp_path: Path) -> Iterator[str]:
    """An HTTP server that has `there.csv`."""
    import http.server

    from health_predict_tests.receivers import serving

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/there.csv" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


def test_an_open_alert_says_what_to_do_and_a_dead_channel_is_named(tmp_path: Path) -> None:
    quiet = Settings(var=tmp_path)
    assert found(*stores.alerts(quiet)).state == "off"
    with receiving() as receiver:
        told = Settings(var=tmp_path, alert_webhook=receiver.url)
        assert found(*stores.alerts(told)).seen == "none open; told by webhook"
        alert = Alert("drift", "Major drift", 0.0, "batch-0003 moved", "did", "look at it", ())
        Outbox(open_store(told.store_uri), []).settle([alert], among=())
        finding = found(*stores.alerts(told))
        assert finding.seen == "open: Major drift. batch-0003 moved"
        assert finding.remedy == "look at it"
    _, dead = stores.alerts(told)
    assert "nothing listens at" in dead.seen


def test_a_ray_cluster_that_is_named_has_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert found(*stores.search(Settings())).seen.startswith("Ray on this machine")
    monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{free_port()}")
    finding = found(*stores.search(Settings()))
    assert finding.state == "wrong"
    assert "correct RAY_ADDRESS" in finding.remedy
    assert found(*stores.search(Settings(search_backend="serial"))).state == "ok"
    with listening() as (_, port):
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert found(*stores.search(Settings())).state == "ok"


# --- the command ---------------------------------------------------------------------------------


def test_the_command_says_so_by_its_exit_code_and_in_json(clean: pytest.MonkeyPatch) -> None:
    clean.setenv(f"{PREFIX}TRIALS", "1")
    clean.setenv(f"{PREFIX}TRIALZ", "1")
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == 1
    told = json.loads(done.output)
    assert told["wrong"] == 2
    wrong = [finding for finding in told["findings"] if finding["state"] == "wrong"]
    assert {finding["part"] for finding in wrong} == {"settings"}
    assert all(finding["remedy"] for finding in wrong)
    table = CliRunner().invoke(main, ["doctor"])
    assert table.exit_code == 1
    assert "2 wrong" in table.output
    assert f"write {PREFIX}TRIALS" in table.output


def test_findings_are_told_as_they_are() -> None:
    from rich.console import Console

    findings = [
        Finding("disk", "ok", "[bold]72 GB[/]"),
        Finding("MLflow", "wrong", "MLflow down", "start it"),
    ]
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        console = Console(record=True, width=100, file=nowhere)
        shown.show(findings, console)
    text = console.export_text()
    assert "[bold]72 GB[/]" in text
    assert "-> start it" in text
    assert "1 wrong, 1 ok, 0 off" in text


def test_processes_that_were_not_stopped_are_told_from_those_that_live(tmp_path: Path) -> None:
    settings = Settings(var=tmp_path)
    assert processes.started(settings) == {}
    pids = {"daemon": 2**22 - 3, "dagit": os.getpid()}
    (tmp_path / "processes.json").write_text(json.dumps(pids))
    assert processes.started(settings) == pids
    assert set(processes.living(settings)) <= {"dagit"}
