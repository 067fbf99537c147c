"""The search on a real Ray cluster: a head without CPUs and a node that has its own /tmp.

Started by `ray start` with a token, on addresses of this machine that nothing outside it reaches,
and asked by processes of their own, as runs are. What a search does on this machine's own Ray is
in `test_tuning`.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import health_predict
from health_predict.search import search_serially
from health_predict_tests.test_tuning import data_of_two_features

PR_SET_PDEATHSIG = 1
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has more than one address of its own"
)

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, NODE, OTHER_NODE = "127.0.0.2", "127.0.0.3", "127.0.0.4"
TOKEN = "0123456789abcdef" * 2
TRIALS, SEED = 6, 7
PATIENCE_SECONDS = 240
ATTEMPTS = 3
"""Ray gives a node half a minute to start, which on a busy machine may be too little."""

SEARCH = """
import json, sys
from health_predict import tuning
from health_predict.search import SearchError
from health_predict_tests.test_tuning import data_of_two_features
options = json.loads(sys.argv[1])
tuning.NODE_SECONDS = options.pop("node_seconds", tuning.NODE_SECONDS)
broken, slow = options.pop("broken", False), options.pop("slow", False)
said = []
try:
    data = data_of_two_features(gap=broken, copies=200 if slow else 1)
    found = tuning.search(data, say=said.append, **options)
except SearchError as error:
    print(json.dumps({"error": str(error)}))
else:
    trials = [[t.family, t.params, t.curve, t.fate] for t in found.trials]
    print(json.dumps({"winner": found.winner.number, "trials": trials, "said": said,
                      "seconds": [found.start_seconds, found.seconds]}))
"""


@dataclass
class RayCluster:
    """Nodes of one cluster, and searches that are sent to it.

    Attributes:
        folder: where it keeps its files; short, for the sockets in it.
        port: of the head.
        client_port: of the head, for those outside of the cluster.
        nodes: address -> the process that stays as long as the node does.
    """

    folder: Path
    port: int
    client_port: int
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What its processes see, and those that search on it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
        return {
            **kept,
            "HOME": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
        }

    def start(self, address: str, arguments: list[str], **environment: str) -> None:
        """Starts a node and waits until it takes part."""
        log = self.folder / f"{address}.log"
        command = [RAY, "start", "--block", "--disable-usage-stats", "--log-style=record"]
        command += ["--object-store-memory", str(256 * 2**20), "--dashboard-agent-listen-port=0"]
        command += ["--node-ip-address", address, *arguments]
        for attempt in range(ATTEMPTS):
            with log.open("wb") as output:
                self.nodes[address] = subprocess.Popen(
                    self._apart(command) if address != HEAD else command,
                    env=self.environment | {"TMPDIR": str(self.temporary)} | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=end_with_parent,
                )
            wait_until(partial(self._started_or_ended, address), log)
            if "Ray runtime started" in log.read_text(errors="replace"):
                return
            self.stop(address)
            assert attempt < ATTEMPTS - 1, log.read_text(errors="replace")

    def _started_or_ended(self, address: str) -> bool:
        log = (self.folder / f"{address}.log").read_text(errors="replace")
        # A node that Ray gave up on keeps its process.
        ended = "Traceback" in log or self.nodes[address].poll() is not None
        return ended or "Ray runtime started" in log

    @property
    def temporary(self) -> Path:
        """The head's folder for temporary files."""
        return self.folder / "tmp"

    def _apart(self, command: list[str]) -> list[str]:
        """Returns a command that hides the head's temporary files from a node, where it may."""
        mount = f"mount -t tmpfs none {self.temporary}"
        apart = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        tried = subprocess.run([*apart, "true"], capture_output=True, check=False)
        return apart + command if tried.returncode == 0 else command

    def add(self, address: str, **environment: str) -> None:
        """Adds a node with one CPU."""
        self.start(address, ["--address", f"{HEAD}:{self.port}", "--num-cpus=1"], **environment)

    def stop(self, address: str) -> None:
        """Stops a node, as far as it can be made to without force."""
        process = self.nodes.pop(address)
        if process.poll() is not None:
            return
        family = [psutil.Process(process.pid), *self.family(process)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=40)
        for one in left:
            one.kill()
        process.wait()

    @staticmethod
    def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Returns what a process started."""
        try:
            return psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def at_work(self, address: str) -> set[str]:
        """Returns what the workers of a node do, as Ray calls it: `ray::CandidateTrial.train`."""
        named = set()
        for process in self.family(self.nodes[address]):
            try:
                title = process.cmdline()[:1]
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            named |= {t.split("(")[0] for t in title if t.startswith("ray::")}
        return {t for t in named if not t.endswith("Agent") and t not in ("ray::IDLE", "ray::")}

    def begin(
        self, address: str, environment: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Begins a search in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SEARCH, json.dumps(options)],
            env=self.environment | {"RAY_ADDRESS": address} | (environment or {}),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "search.log").open("wb"),
        )

    def search(
        self, address: str, environment: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Returns what a search found or said, and which node did what meanwhile."""
        running = self.begin(address, environment, **options)
        seen: dict[str, set[str]] = {node: set() for node in self.nodes}
        until = time.monotonic() + PATIENCE_SECONDS
        while running.poll() is None and time.monotonic() < until:
            for node in self.nodes:
                seen[node] |= self.at_work(node)
            time.sleep(0.05)
        running.kill()
        output, _ = running.communicate()
        assert running.returncode == 0, (self.folder / "search.log").read_text()
        return {**json.loads(output.splitlines()[-1]), "seen": seen}


def end_with_parent() -> None:
    """Asks the kernel to end this process when its parent does: no cluster outlives its test."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_until(true: Any, log: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < until, log.read_text(errors="replace")
        time.sleep(0.2)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HEAD, port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HEAD, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    """A head without CPUs, which is a cluster that waits for its first node."""
    cluster = RayCluster(Path(tempfile.mkdtemp(prefix="rc")), free_port(), free_port())
    cluster.temporary.mkdir()
    # Else Ray asks the metadata servers of three clouds where it runs.
    (cluster.folder / "ray_bootstrap_config.yaml").write_text("{}")
    arguments = ["--head", "--num-cpus=0", "--include-dashboard=false"]
    arguments += ["--port", str(cluster.port), "--ray-client-server-port", str(cluster.client_port)]
    try:
        cluster.start(HEAD, [*arguments, "--temp-dir", str(cluster.folder / "ray")])
        # What takes clients is up a little later than what nodes join.
        wait_until(partial(listens, cluster.client_port), cluster.folder / f"{HEAD}.log")
        yield cluster
    finally:
        for address in list(cluster.nodes)[::-1]:
            cluster.stop(address)
        shutil.rmtree(cluster.folder)


# First, while the cluster has no CPU.
def test_a_cluster_that_adds_no_node_in_time_ends_the_search(head):
    found = head.search(f"ray://{HEAD}:{head.client_port}", trials=3, seed=SEED, node_seconds=2)
    assert "the Ray cluster has no CPU and added none within 2 s" in found["error"]


@pytest.fixture(scope="module")
def cluster(head: RayCluster) -> RayCluster:
    """The head, and a node with one CPU."""
    head.add(NODE)
    return head


@pytest.fixture(scope="module")
def found(cluster: RayCluster) -> dict[str, Any]:
    """A search from outside of the cluster."""
    return cluster.search(f"ray://{HEAD}:{cluster.client_port}", trials=TRIALS, seed=SEED)


def test_a_cluster_finds_what_this_process_alone_finds_to_the_bit(found):
    alone = search_serially(data_of_two_features(), trials=TRIALS, seed=SEED)
    assert found["trials"] == [[t.family, t.params, t.curve, t.fate] for t in alone.trials]
    assert found["winner"] == alone.winner.number


def test_this_machines_own_ray_finds_the_same(found, cluster):
    local = cluster.search("", trials=TRIALS, seed=SEED)
    assert [local["trials"], local["winner"]] == [found["trials"], found["winner"]]
    assert local["seen"] == {HEAD: set(), NODE: set()}


def test_trials_run_on_nodes_and_only_the_search_itself_on_the_head(found):
    assert any("CandidateTrial" in title for title in found["seen"][NODE])
    assert any("_runner" in title for title in found["seen"][HEAD])
    assert not any("CandidateTrial" in title for title in found["seen"][HEAD])


def test_each_trial_is_told_to_whoever_asked(found):
    assert len(found["said"]) == TRIALS
    assert sorted(line.split()[1] for line in found["said"]) == sorted("123456")
    assert 0 < found["seconds"][0] < found["seconds"][1]


def test_nothing_of_a_search_stays_in_the_cluster(found, cluster):
    def idle() -> bool:
        return not any(cluster.at_work(node) for node in cluster.nodes)

    wait_until(idle, cluster.folder / f"{HEAD}.log")
    assert list(cluster.temporary.glob("hp-*")) == []


def test_a_process_inside_the_cluster_needs_no_client_port(found, cluster):
    inside = cluster.search(f"{HEAD}:{cluster.port}", trials=TRIALS, seed=SEED)
    assert inside["trials"] == found["trials"]


def test_a_token_is_sent_without_saying_so_and_one_that_is_wrong_is_named(found, cluster):
    address = f"ray://{HEAD}:{cluster.client_port}"
    unsaid = {"RAY_AUTH_MODE": ""}
    right = cluster.search(address, {**unsaid, "RAY_AUTH_TOKEN": TOKEN}, trials=3, seed=SEED)
    assert right["trials"][0] == found["trials"][0]
    wrong = cluster.search(address, {**unsaid, "RAY_AUTH_TOKEN": TOKEN[::-1]}, trials=3, seed=SEED)
    assert f"RAY_ADDRESS={address} answers but lets no search in" in wrong["error"]
    assert "gets it from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in wrong["error"]
    assert TOKEN[::-1] not in wrong["error"]


def test_a_trial_that_fails_there_fails_the_search_by_name(cluster):
    address = f"ray://{HEAD}:{cluster.client_port}"
    families = ["logistic_regression", "xgboost"]
    found = cluster.search(address, broken=True, trials=2, seed=SEED, families=families)
    assert "1 of 2 trials failed, first logistic_regression with " in found["error"]


def test_what_a_killed_process_asked_for_is_dropped(cluster):
    running = cluster.begin(f"{HEAD}:{cluster.port}", slow=True, trials=60, seed=SEED)
    log = cluster.folder / "search.log"
    wait_until(lambda: any("CandidateTrial" in title for title in cluster.at_work(NODE)), log)
    running.kill()
    running.wait()
    wait_until(lambda: not cluster.at_work(NODE) | cluster.at_work(HEAD), log)


def test_a_node_with_other_code_is_refused_and_one_without_it_too(cluster, tmp_path):
    other = tmp_path / "health_predict"
    shutil.copytree(Path(health_predict.__file__).parent, other, ignore=lambda *_: ["serving"])
    with (other / "models.py").open("a") as models:
        models.write("STAGES = 8\n")
    address = f"ray://{HEAD}:{cluster.client_port}"
    cluster.add(OTHER_NODE, PYTHONPATH=str(tmp_path))
    try:
        found = cluster.search(address, trials=3, seed=SEED)
        assert f"node {OTHER_NODE} of the Ray cluster" in found["error"]
        assert "would find another result: health_predict " in found["error"]
        assert "same image" in found["error"]
        (other / "ray_link.py").unlink()
        found = cluster.search(address, trials=3, seed=SEED)
        assert f"node {OTHER_NODE} of the Ray cluster" in found["error"]
        assert "cannot run a search: " in found["error"]
        assert "No module named 'health_predict.ray_link'" in found["error"]
    finally:
        cluster.stop(OTHER_NODE)
