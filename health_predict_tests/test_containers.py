"""An image is what its Bento is, says what it is, and is refused when it does not answer rightly.

Those marked `container` build, push and run it for real: `pytest -m container`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from health_predict import containers, engines, images
from health_predict.containers import CannotRun
from health_predict.engines import ContainerError, Engine
from health_predict.images import Built
from health_predict.oci_registry import OciRegistry
from health_predict.sbom import sbom
from health_predict.settings import ROOT
from health_predict.verification import over_http, verify
from health_predict_tests import bentos
from health_predict_tests.bentos import HOST, free_port
from health_predict_tests.container_tools import (
    BASE,
    RegistryServer,
    base_image,
    engine,
    image,
    registry,
)

CREATED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LOCK = ROOT / "requirements-serving.lock"
PASSWORD = "correct-horse"


def program(folder: Path, name: str, script: str = "exit 0") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


# --- the engine ---


def test_without_an_engine_it_is_said_what_was_looked_for(path):
    with pytest.raises(ContainerError, match="docker is not installed; podman is not installed;"):
        engines.find_engine()


def test_docker_without_its_daemon_makes_way_for_an_engine_that_works(path):
    program(path, "docker", "echo Cannot connect >&2; exit 1")
    program(path, "podman")
    assert engines.find_engine() == Engine("podman", "podman")
    with pytest.raises(ContainerError, match="docker: Cannot connect"):
        engines.find_engine("docker")


def test_the_engine_that_is_wanted_is_used(path):
    for name in ("docker", "podman", "buildah"):
        program(path, name)
    assert engines.find_engine().name == "docker"
    assert engines.find_engine("buildah") == Engine("buildah", "podman")


def test_an_engine_nobody_knows_is_refused(path):
    with pytest.raises(ContainerError, match=r"'rkt': it takes docker, podman, buildah"):
        engines.find_engine("rkt")


def test_an_engine_that_only_builds_says_that_it_runs_nothing(path):
    program(path, "buildah")
    found = engines.find_engine("buildah")
    assert "podman is not installed" in engines.can_run(found)
    with pytest.raises(CannotRun), containers.run("localhost/a:1", found, 1):
        pass


def test_an_engine_that_does_not_work_here_says_why(path):
    program(path, "podman", "echo no such runtime >&2; exit 125")
    assert "no such runtime" in engines.can_run(Engine("podman", "podman"))


# --- what an image says of itself ---


def test_a_tag_names_the_model_version_and_its_bento():
    assert images.image_tag("7", "0123456789abcdef" * 4) == "7-0123456789ab"


def test_labels_say_where_an_image_comes_from_and_leave_out_what_is_unknown():
    told = images.labels("7", "ab" * 32, "", "https://example.org/source", CREATED)
    assert told["org.opencontainers.image.version"] == "7-" + "ab" * 6
    assert told["org.opencontainers.image.created"] == "2026-03-01T12:00:00Z"
    assert told["health-predict.model-version"] == "7"
    assert "org.opencontainers.image.revision" not in told


@pytest.fixture(scope="module")
def listed() -> bytes:
    built = Built(
        "localhost/readmission:7-ab", "sha256:" + "c" * 64, 1, BASE, "sha256:" + "d" * 64, 1
    )
    return sbom(LOCK, built)


def test_the_list_of_parts_is_valid_cyclonedx(listed):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(listed.decode()) is None


def test_the_list_of_parts_has_what_is_installed_on_linux_by_name_version_and_hash(listed):
    document = json.loads(listed)
    parts = {part["name"]: part for part in document["components"]}
    assert {"bentoml", "duckdb", "uvloop", "xgboost-cpu"} <= parts.keys()
    assert not {"xgboost", "pycparser", "cffi"} & parts.keys()  # of macOS and PyPy
    assert parts["numpy"]["purl"].startswith("pkg:pypi/numpy@")
    assert parts["numpy"]["externalReferences"][0]["hashes"]
    assert parts["localhost/base"]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    assert document["metadata"]["component"]["version"] == "7-ab"


def test_the_same_image_has_the_same_list_of_parts(listed):
    built = Built(
        "localhost/readmission:7-ab", "sha256:" + "c" * 64, 9, BASE, "sha256:" + "d" * 64, 2
    )
    again = sbom(LOCK, built)
    assert again == listed


# --- how its packages are finished ---


@pytest.fixture(scope="module")
def finish() -> ModuleType:
    found = importlib.util.spec_from_file_location("finish", ROOT / "image" / "finish.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_tests_and_unused_parts_are_removed_from_packages(finish, tmp_path):
    kept = ("scipy/sparse/__init__.py", "a/testing.py", "numpy/f.so")
    gone = (
        "scipy/stats/x.py",
        "a/tests/data/x.csv",
        "a/b/test/x.py",
        "a/x.pyi",
        "numpy/include/x.h",
    )
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    finish.trim(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {*kept}


def test_what_sources_import_is_found_also_inside_functions_but_not_themselves(finish, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.py").write_text(
        "import json.decoder\nfrom own import b\ndef f():\n    from zlib import crc32\n"
    )
    assert finish.named(tmp_path) == {"json.decoder", "zlib"}


def test_byte_code_is_the_same_in_every_build_and_used(finish, tmp_path):
    source = tmp_path / "source.py"
    source.write_text("print('from byte code')\n")
    codes = []
    for folder in ("one", "two"):
        os.utime(source, (len(codes), len(codes)))
        command = [sys.executable, "-B", "-c", _COMPILE, ROOT / "image", source, tmp_path / folder]
        subprocess.run(command, check=True)
        (code,) = (tmp_path / folder).rglob("*.pyc")
        codes.append(code.read_bytes())
    assert codes[0] == codes[1]
    source.write_text("print('from source')\n")
    said = subprocess.run(
        [sys.executable, "-B", "-c", "import source"],
        env={"PYTHONPATH": str(tmp_path), "PYTHONPYCACHEPREFIX": str(tmp_path / "one")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "from byte code\n"


_COMPILE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import finish
finish.compile_files([Path(sys.argv[2])], Path(sys.argv[3]))
"""


# --- a Bento that is not what it says ---


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return bentos.store(tmp_path)[0]


def containerise(home: Path, engine: Engine, version: str, tag: str, base: str = BASE) -> Built:
    told = images.labels(version, "ab" * 32, "0123abc", "https://example.org/source", CREATED)
    return images.containerise(f"readmission:{version}", home, engine, base, told, tag)


def test_a_bento_that_names_another_model_is_not_made_an_image(home, path):
    recipe = home / "bentos" / "readmission" / "2" / "bento.yaml"
    recipe.write_text(recipe.read_text().replace("readmission:2", "readmission:1"))
    with pytest.raises(ContainerError, match="readmission:2 names readmission:1"):
        containerise(home, Engine("buildah", None), "2", "localhost/readmission:2")


def test_a_bento_that_is_not_there_is_named(home, path):
    with pytest.raises(ContainerError, match="no Bento readmission:99"):
        containerise(home, Engine("buildah", None), "99", "localhost/readmission:99")


# --- for real ---


@dataclass(frozen=True)
class Made:
    """Real images, what they are of, and what has them."""

    engine: Engine
    home: Path
    bentos: dict[str, bentos.Built]
    images: dict[str, Built]

    def verify(self, version: str) -> Callable[[str], str]:
        golden = self.bentos[version].golden
        return lambda url: verify(over_http(url), version, golden)

    def ask(self, *arguments: str) -> str:
        return self.engine.ask(*arguments)

    def inside(self, version: str, *command: str) -> str:
        """Runs a command in a container of an image."""
        return self.ask(
            *("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"),
            *("--entrypoint", command[0], self.images[version].reference, *command[1:]),
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Images of versions 1 and 2."""
    home, built = bentos.store(tmp_path_factory.mktemp("bentos"))
    with engine() as one:
        base_image(one)
        images = {
            version: containerise(home, one, version, f"localhost/readmission:{version}")
            for version in ("1", "2")
        }
        yield Made(one, home, built, images)


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with registry({"deploy": PASSWORD}) as started:
        yield started


def layers(made: Made, version: str) -> list[str]:
    found = json.loads(made.ask("image", "inspect", made.images[version].reference))[0]
    return found["RootFS"]["Layers"]


@pytest.mark.container
def test_the_image_is_lean_and_says_what_it_is(made):
    built = made.images["1"]
    assert built.size < 450e6
    kept = images.inspect(made.engine, built.reference)
    assert (kept.id, kept.size) == (built.id, built.size)
    assert kept.labels["health-predict.model-version"] == "1"
    assert kept.labels["org.opencontainers.image.revision"] == "0123abc"
    assert kept.labels["org.opencontainers.image.base.name"] == BASE
    base = images.inspect(made.engine, BASE)
    assert kept.labels["org.opencontainers.image.base.digest"] == base.digest == built.base_digest


@pytest.mark.container
def test_an_engine_that_only_builds_knows_the_same_of_an_image(made):
    reference = made.images["1"].reference
    alone = images.inspect(replace(made.engine, runner=None), reference)
    both = images.inspect(made.engine, reference)
    assert (alone.id, alone.digest, alone.labels) == (both.id, both.digest, both.labels)
    assert alone.size == pytest.approx(both.size, rel=0.01)


@pytest.mark.container
def test_an_image_that_is_removed_is_gone_and_may_be_removed_again(made, tmp_path):
    (tmp_path / "file").write_text("y")
    reference = image(made.engine, "localhost/passing:1", tmp_path / "file")
    for _ in range(2):
        images.remove(made.engine, reference)
    with pytest.raises(ContainerError, match="passing"):
        images.inspect(made.engine, reference)


@pytest.mark.container
def test_the_image_has_no_compiler_no_pip_and_no_root(made):
    found = json.loads(made.ask("image", "inspect", made.images["1"].reference))[0]["Config"]
    assert found["User"] == "10001:10001"
    assert made.inside("1", "id", "-u") == "10001"
    look = "command -v gcc cc make pip pip3; find / -xdev -name '*.whl' -path '*/root/*'; true"
    assert made.inside("1", "sh", "-c", look) == ""


@pytest.mark.container
def test_another_model_changes_the_last_layers_only(made):
    first, second = layers(made, "1"), layers(made, "2")
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same == [True] * (len(same) - 2) + [False] * 2


@pytest.mark.container
def test_the_same_model_packed_again_elsewhere_is_the_same_bento(made, tmp_path):
    (again,) = bentos.build(tmp_path / "bentoml", "1=0.001")
    assert again.bento.digest == made.bentos["1"].bento.digest


@pytest.mark.container
def test_the_list_of_parts_is_what_is_in_the_image(made, tmp_path):
    document = json.loads(sbom(LOCK, made.images["1"]))
    told = {
        (part["name"], part["version"])
        for part in document["components"]
        if part["type"] == "library"
    }
    script = (
        "import importlib.metadata as m, json;"
        "print(json.dumps([[d.metadata['Name'], d.version] for d in m.distributions()]))"
    )
    inside = json.loads(made.inside("1", "python", "-P", "-c", script))
    assert {(_normal(name), version) for name, version in inside} == {
        (_normal(name), version) for name, version in told
    }


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.container
def test_an_image_is_tried_pushed_pulled_by_its_digest_and_answers_as_the_pipeline(made, server):
    built = made.images["1"]
    tried = containers.smoke(built.reference, made.engine, made.verify("1"), free_port())
    assert tried.problem == ""
    assert tried.ready_seconds is not None
    assert tried.ready_seconds < tried.seconds
    oci = OciRegistry(server.address, "deploy", PASSWORD)
    pushed = oci.push(made.engine, built.reference, "tests/readmission", "1")
    with engine() as elsewhere:
        pulled = oci.pull(elsewhere, "tests/readmission", pushed.digest)
        again = containers.smoke(pulled, elsewhere, made.verify("1"), free_port())
        assert again.problem == ""
        assert elsewhere.ask("ps", "--all", "--quiet") == ""
    second = oci.push(made.engine, made.images["2"].reference, "tests/readmission", "2")
    assert second.layers[:-2] == pushed.layers[:-2]


@pytest.mark.container
def test_what_the_service_imports_has_byte_code_in_the_image(made):
    command = [
        *("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:rw,mode=1777"),
        *("--env", "PYTHONPYCACHEPREFIX=/tmp/compiled", "--env", "PYTHONDONTWRITEBYTECODE="),
        *("--env", "HEALTH_PREDICT_AUTH=off", "--entrypoint", "sh"),
        *(made.images["1"].reference, "-c", _SERVE_AND_LIST),
    ]
    used, here = (set(half.split()) for half in made.ask(*command).split("---"))
    assert len(used) > 1000
    # Some are compiled and then not imported after all, for want of a package they need.
    assert len(used - here) < 0.01 * len(used), used - here


_SERVE_AND_LIST = """
bentoml serve /opt/bento > /tmp/log 2>&1 &
python -c '
import time, urllib.request
for _ in range(600):
    try:
        urllib.request.urlopen("http://127.0.0.1:3000/readyz", timeout=5)
        break
    except OSError:
        time.sleep(0.1)
urllib.request.urlopen("http://127.0.0.1:3000/metrics")
'
(cd /tmp/compiled && find . -type f)
echo ---
(cd /opt/pycache && find . -type f)
"""


def tried(made: Made, reference: str, version: str, seconds: float = 60) -> containers.Smoke:
    return containers.smoke(
        reference, made.engine, made.verify(version), free_port(), seconds=seconds
    )


@pytest.mark.container
def test_an_image_with_another_version_inside_is_refused(made):
    found = tried(made, made.images["2"].reference, "1")
    assert found.problem == "was rolled out, but version 2 answers"


@pytest.mark.container
def test_an_image_whose_scores_differ_is_refused(made):
    golden = [bentos.GoldenRow(r.encounter, r.score + 0.01) for r in made.bentos["1"].golden]
    found = containers.smoke(
        made.images["1"].reference,
        made.engine,
        lambda url: verify(over_http(url), "1", golden),
        free_port(),
    )
    assert found.problem.startswith("scores golden row 0 as ")


@pytest.fixture(scope="module")
def broken(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Images of version 1 whose service or model is spoilt."""
    folder = tmp_path_factory.mktemp("broken")
    spoilt = {"service": "opt/bento/src/health_predict/service.py"}
    spoilt["model"] = "opt/bento/models/readmission/1/tables.json"
    references = {}
    for name, file in spoilt.items():
        (folder / name).write_text("spoilt")
        container = made.engine.call("buildah", "from", made.images["1"].reference).stdout.strip()
        made.engine.call("buildah", "copy", container, str(folder / name), f"/{file}")
        remove = "/opt/pycache/opt/bento"
        made.engine.call("buildah", "run", "--user", "0", container, "--", "rm", "-r", remove)
        references[name] = f"localhost/broken:{name}"
        made.engine.call("buildah", "commit", "--rm", container, references[name])
    return references


@pytest.mark.container
def test_an_image_that_crashes_at_start_is_refused_with_its_last_lines(made, broken):
    found = tried(made, broken["service"], "1")
    assert "ended with exit code 1" in found.problem
    assert "spoilt" in found.problem
    assert found.ready_seconds is None


@pytest.mark.container
def test_an_image_whose_model_was_changed_is_refused(made, broken):
    found = tried(made, broken["model"], "1", seconds=20)
    assert "tables.json" in found.problem


@pytest.mark.container
def test_after_a_trial_nothing_of_it_is_left(made):
    tried(made, made.images["1"].reference, "2")
    assert made.ask("ps", "--all", "--quiet") == ""


@pytest.mark.container
def test_a_container_left_behind_by_a_killed_process_is_removed_by_the_next_trial(made):
    gone = max(psutil.pids()) + 100_000
    label = f"health-predict.trial={gone}"
    reference = made.images["1"].reference
    made.ask(*("run", "--detach", "--network", "none", "--label", label), reference)
    assert tried(made, reference, "1").problem == ""
    assert made.ask("ps", "--all", "--quiet") == ""


@pytest.mark.container
def test_a_base_image_that_cannot_be_had_is_named_with_the_setting(made):
    with pytest.raises(ContainerError, match=r"base image localhost/absent:1 .*BASE_IMAGE"):
        containerise(made.home, made.engine, "1", "localhost/x:1", "localhost/absent:1")


@pytest.mark.container
def test_a_build_that_fails_says_what_failed(made, tmp_path):
    home = Path(shutil.copytree(made.home, tmp_path / "bentoml", symlinks=True))
    lock = home / "bentos" / "readmission" / "1" / "env" / "python" / "requirements.txt"
    lock.write_text(lock.read_text() + "absent-package-of-tests==1.0\n")
    with pytest.raises(ContainerError, match=r"buildah did not build localhost/x:1: .*absent-"):
        containerise(home, made.engine, "1", "localhost/x:1")


@pytest.mark.container
def test_an_engine_that_cannot_run_it_is_told_from_an_image_that_fails(made, tmp_path):
    (tmp_path / "file").write_text("x")
    empty = image(made.engine, "localhost/empty:1", tmp_path / "file", entrypoint="/absent")
    with pytest.raises(CannotRun), containers.run("localhost/absent:1", made.engine, free_port()):
        pass
    found = containers.smoke(empty, made.engine, lambda _: "", free_port())
    assert "does not start" in found.problem


@pytest.mark.container
def test_it_answers_on_this_machine_only_while_it_is_tried(made):
    seen = []

    def look(url: str) -> str:
        port = int(url.rsplit(":", 1)[1])
        seen.extend(
            each.laddr.ip
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port
        )
        return ""

    reference = made.images["1"].reference
    assert containers.smoke(reference, made.engine, look, free_port()).problem == ""
    assert set(seen) == {HOST}
