"""The keeper of the docs: links lead somewhere, commands exist, figures say where they come from.

Each rule is a function from a page to its faults, asked of every page and of a page that breaks it.
Nothing is asked of the network. A shell block is run where a comment says so: `<!-- run -->` before
it runs it without any state, `<!-- run with the service -->` with a service that answers.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from health_predict.cli import main
from health_predict.definitions import assemble
from health_predict.settings import ROOT, SILENCED, Settings
from health_predict_tests import bentos, served_bento
from health_predict_tests.markdown import Code, Fence, Page, Section, commands, read

README = ROOT / "README.md"
PAGES = sorted(
    {
        README,
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "k8s").rglob("README.md"),
        *(ROOT / "iac").rglob("README.md"),
    }
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
every_page = pytest.mark.parametrize("page", [read(path) for path in PAGES], ids=NAMES)

SHELL = "sh"
LANGUAGES = {SHELL, "text", "mermaid", "json", "yaml", "hcl", "python", "toml", "ini"}
RUN, RUN_WITH_SERVICE = "run", "run with the service"
"""Marks of blocks that are run."""
MADE_BY = "Made by "
"""How a page says at its head that a command writes it whole: it stands for every figure."""
NOT_MEASURED = "not measured: "
"""Mark of a section whose decimals are none of ours, with what they are: prices, versions."""

FOREIGN = {
    *("apt-get", "aws", "cat", "cd", "cut", "docker", "eval", "export", "git", "grep", "helm"),
    *("kubectl", "minikube", "openssl", "podman", "printf", "python3", "sed", "sha256sum", "sudo"),
    *("systemctl", "terraform", "test", "uv"),
}
"""Programs of others that a block may use, and what the shell has."""

SERVICE_PORTS = {3500, 30500}
OTHER_PORTS = {3000, 5000, 8099}
"""Of the examples: the service (here, in a cluster); Dagit, MLflow, a receiver of alerts."""

REGISTRIES = ("pypi.org", "pythonhosted.org", "npmjs.org", "docker.io", "quay.io", "ghcr.io")
SUFFIXES = r"py|md|ya?ml|json|toml|html|png|j2|css|sh|tf|lock"


# Links.


def broken_links(page: Page) -> list[str]:
    """Returns where a page leads to nothing."""
    return [f"{link.line}: {link.target}" for link in page.links if not _leads(page, link.target)]


def _leads(page: Page, target: str) -> bool:
    parts = urlsplit(target)
    if parts.scheme:
        known = parts.scheme in ("http", "https") and "." in (parts.hostname or "")
        return known and not (parts.hostname or "").endswith(REGISTRIES)
    path = (page.path.parent / parts.path).resolve() if parts.path else page.path
    if not path.exists() or ROOT not in (path, *path.parents):
        return False
    return not parts.fragment or (path.suffix == ".md" and parts.fragment in read(path).anchors)


@every_page
def test_every_link_leads_somewhere(page: Page) -> None:
    assert broken_links(page) == []


@every_page
def test_every_image_says_what_it_shows(page: Page) -> None:
    assert [link.target for link in page.links if link.image and len(link.text) < 10] == []


def test_every_picture_of_the_docs_is_shown_by_a_page() -> None:
    shown = {(path.parent / link.target).resolve() for path in PAGES for link in read(path).links}
    pictures = {path.resolve() for path in (ROOT / "docs").rglob("*.png")}
    assert pictures - shown == set()


def test_every_page_is_two_links_from_the_readme() -> None:
    def linked(pages: set[Path]) -> set[Path]:
        targets = (
            (path.parent / urlsplit(link.target).path).resolve()
            for path in pages
            for link in read(path).links
            if not urlsplit(link.target).scheme
        )
        return {path for path in targets if path in PAGES}

    near = {README} | linked({README})
    assert set(PAGES) - near - linked(near) == set()


# Commands.


def unknown_commands(page: Page) -> list[str]:
    """Returns what a page tells to type that does not exist."""
    return [
        f"{fence.line}: {fault}"
        for fence in page.fences
        if fence.language == SHELL
        for words in commands(fence.content)
        for fault in faults_of(words)
    ]


def faults_of(words: list[str]) -> Iterator[str]:
    """Yields what is wrong with a command."""
    while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
        yield from _unknown_settings(words[0])
        words = words[1:]
    if not words:
        return
    program, arguments = words[0], words[1:]
    name = program.removeprefix(".venv/bin/")
    if name == "make":
        yield from _faults_of_make(arguments)
    elif name == "health-predict":
        yield from _faults_of_ours(arguments)
    elif name == "curl":
        yield from _faults_of_curl(arguments)
    elif name in ("python", "python3"):
        yield from _faults_of_python(arguments)
    elif program == name and "/" not in program and program not in FOREIGN:
        yield f"nobody knows the program {program}"
    for word in words:
        yield from _missing_paths(word)


def _unknown_settings(word: str) -> Iterator[str]:
    for name in re.findall(r"HEALTH_PREDICT_[A-Z_]*[A-Z]", word):
        if name not in settings():
            yield f"there is no setting {name}"


@cache
def settings() -> set[str]:
    """Returns every variable of ours that something reads."""
    found = {f"HEALTH_PREDICT_{name.upper()}" for name in Settings.model_fields}
    for name, text in sources().items():
        if name != f"health_predict_tests/{Path(__file__).name}":
            found.update(re.findall(r"HEALTH_PREDICT_[A-Z_]*[A-Z]", text))
    return found | {"HEALTH_PREDICT_TEST_DATA"}


def _faults_of_make(arguments: list[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        variable = re.fullmatch(r"([A-Z]+)=.*", argument)
        if variable and f"$({variable[1]})" not in makefile:
            yield f"the Makefile has no variable {variable[1]}"
        elif not variable and not re.search(rf"^{re.escape(argument)}:", makefile, re.MULTILINE):
            yield f"there is no target {argument}"


def _faults_of_ours(arguments: list[str]) -> Iterator[str]:
    if not arguments or arguments[0].startswith("-"):
        return
    command = main.commands.get(arguments[0])
    if command is None:
        yield f"there is no command health-predict {arguments[0]}"
        return
    known = {name for parameter in command.params for name in parameter.opts} | {"-h", "--help"}
    for argument in arguments[1:]:
        if argument.startswith("-") and argument.split("=")[0] not in known:
            yield f"health-predict {arguments[0]} has no option {argument}"
    given = {argument.split("=")[0] for argument in arguments[1:]}
    needed = (p for p in command.params if isinstance(p, click.Option) and p.required)
    for parameter in needed:
        if not given & {*parameter.opts, "-h", "--help"}:
            yield f"health-predict {arguments[0]} needs {parameter.opts[0]}"


def _faults_of_curl(arguments: list[str]) -> Iterator[str]:
    from health_predict import service

    for argument in arguments:
        if not argument.startswith(("http://", "https://")):
            continue
        parts = urlsplit(argument)
        if parts.port in OTHER_PORTS:
            continue
        if parts.port not in SERVICE_PORTS:
            yield f"nothing of ours answers at {argument}"
            continue
        route = service.app.routes.get(parts.path)
        sends = any(word in ("-d", "--data", "--data-binary") for word in arguments)
        if route is None or ("POST" if sends else "GET") not in route.methods:
            yield f"the service has no {'POST' if sends else 'GET'} {parts.path}"


def _faults_of_python(arguments: list[str]) -> Iterator[str]:
    if arguments[:1] == ["-c"]:
        try:
            compile(arguments[1], "docs", "exec")
        except SyntaxError as error:
            yield f"python -c: {error}"
    if "-m" not in arguments:
        return
    module, *rest = arguments[arguments.index("-m") + 1 :]
    if importlib.util.find_spec(module) is None:
        yield f"there is no module {module}"
    if module == "pytest" and "-m" in rest and rest[rest.index("-m") + 1] not in markers():
        yield f"no test is marked {rest[rest.index('-m') + 1]}"


@cache
def markers() -> set[str]:
    """Returns what tests may be marked by."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    return {marker.split(":")[0] for marker in options["markers"]}


def _missing_paths(word: str) -> Iterator[str]:
    """Yields paths inside of the project that are not there; what runs make is under `var/`."""
    for path in re.findall(r"(?:^|(?<=[=@ ]))\.?[\w.-]+(?:/[\w.-]+)+/?", word):
        first, *others = Path(path).parts
        if first == "var" or not (ROOT / first).exists() or any(part.isupper() for part in others):
            continue
        installed = path.removeprefix(".venv/bin/")
        if not (ROOT / path).exists() and not (Path(sys.prefix) / "bin" / installed).exists():
            yield f"there is no {path}"


@every_page
def test_every_command_of_a_shell_block_exists(page: Page) -> None:
    assert unknown_commands(page) == []


@every_page
def test_every_block_says_what_it_is(page: Page) -> None:
    faults = [f"{f.line}: {f.language!r}" for f in page.fences if f.language not in LANGUAGES]
    assert faults == [], f"write one of {', '.join(sorted(LANGUAGES))} behind the backticks"


@every_page
def test_every_shell_block_is_shell(page: Page) -> None:
    for fence in page.fences:
        if fence.language == SHELL:
            told = subprocess.run(
                ["bash", "-n"], input=fence.content, capture_output=True, text=True, check=False
            )
            assert told.returncode == 0, f"{page.path.name}:{fence.line}: {told.stderr}"


# What is named in a sentence.


def unknown_names(page: Page) -> list[str]:
    """Returns commands, settings and files that sentences name and nothing knows."""
    return [f"{code.line}: {fault}" for code in page.codes for fault in _faults_of_code(code)]


def _faults_of_code(code: Code) -> Iterator[str]:
    words = code.text.split()
    if not words:
        return
    if words[0].removeprefix(".venv/bin/") in ("make", "health-predict") and len(words) > 1:
        for told in commands(code.text.replace("...", "")):
            yield from (fault for fault in faults_of(told) if "needs" not in fault)
    yield from _unknown_settings(code.text)
    file, _, test = code.text.partition("::")
    if re.fullmatch(rf"[\w.-]+(?:/[\w.-]+)*\.({SUFFIXES})", file):
        yield from _missing_file(file)
        if test and f"def {test}(" not in (sources().get(f"health_predict_tests/{file}") or ""):
            yield f"there is no test {code.text}"


def _missing_file(name: str) -> Iterator[str]:
    made = name.startswith("var/") or any(part.isupper() for part in Path(name).parts)
    if made or any(f"/{path}".endswith(f"/{name}") for path in files()):
        return
    if "/" not in name and any(f'"{name}"' in text for text in sources().values()):
        return  # a running program makes it
    yield f"there is no file {name}"


@cache
def files() -> list[str]:
    """Returns the project's files, what running makes left out."""
    made = {".git", ".venv", "var", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    return [
        str(path.relative_to(ROOT))
        for top in ROOT.iterdir()
        if top.name not in made
        for path in ([top] if top.is_file() else top.rglob("*"))
        if path.is_file() and not made & set(path.relative_to(ROOT).parts)
    ]


@cache
def sources() -> dict[str, str]:
    """Returns what is run, by path: everything but pages, pictures and lock files."""
    unread = {".md", ".png", ".lock", ".svg"}
    return {
        name: (ROOT / name).read_text(errors="ignore")
        for name in files()
        if Path(name).suffix not in unread
    }


@every_page
def test_what_a_sentence_names_exists(page: Page) -> None:
    assert unknown_names(page) == []


# Figures.

_DECIMAL = re.compile(r"(?<![\w./-])[-+]?\d[\d,]*\.\d+(?![\w.])|(?<![\w./-])[-+]?\.\d+(?![\w.])")
_UNIT = re.compile(r"(?:ms|s|MB|MiB|GB|rows/s|requests/s)\b")
_MAKES_FIGURES = re.compile(
    r"^(?:\.venv/bin/)?(?:make [a-z]|health-predict [a-z]|python -m pytest|pytest )"
)


def figures_without_command(page: Page) -> list[str]:
    """Returns the sections with measured figures and no command that makes them."""
    if is_made(page):
        return []
    return [
        f"{section.line}: {section.title}: {', '.join(figures[:3])}"
        for section in page.sections
        if (figures := list(measured_figures(section)))
        and not _names_a_command(section)
        and not any(mark.startswith(NOT_MEASURED) for mark in section.marks)
    ]


def is_made(page: Page) -> bool:
    """Returns whether a command writes the whole page, and the page says so at its head."""
    head = (words for section in page.sections[:2] for words in section.prose)
    return any(words.startswith(MADE_BY) for words in head)


def measured_figures(section: Section) -> Iterator[str]:
    """Yields decimals in tables, and decimals with a unit in sentences."""
    for cell in section.cells:
        yield from (match[0] for match in _DECIMAL.finditer(cell))
    for words in section.prose:
        for match in _DECIMAL.finditer(words):
            if _UNIT.match(words[match.end() :].lstrip()):
                yield match[0]


def _names_a_command(section: Section) -> bool:
    in_blocks = (line for fence in section.fences for line in fence.content.splitlines())
    spans = (code.text for code in section.codes)
    return any(_MAKES_FIGURES.match(text) for text in (*in_blocks, *spans))


@every_page
def test_every_measured_figure_stands_by_the_command_that_makes_it(page: Page) -> None:
    assert figures_without_command(page) == []


# Diagrams.

_KINDS = ("flowchart", "sequenceDiagram")
_NODE = r"[A-Za-z][\w]*"
_LABEL = r"(?:\(\[[^\]]*\]\)|\[\([^)]*\)\]|\[[^\]]*\]|\([^)]*\)|\{[^}]*\})"
_ARROW = re.compile(r"\s*(?:-\.[^-]*\.?->|--[^->]*-->|-->(?:\|[^|]*\|)?|---|-\.->|==>|&)\s*")
_MESSAGE = re.compile(rf"({_NODE})\s*(?:->>|-->>|->|-->|-\)|--\))\s*[+-]?({_NODE})\s*:\s*\S.*")
_BLOCK = re.compile(r"(?:alt|else|opt|loop|par|and|end|note|autonumber|activate|deactivate)\b.*")


def diagram_faults(fence: Fence) -> list[str]:
    """Returns what is wrong with a mermaid block."""
    kind, *lines = [line.strip() for line in fence.content.splitlines() if line.strip()]
    if not kind.startswith(_KINDS):
        return [f"a diagram begins with one of {', '.join(_KINDS)}, this one with {kind!r}"]
    return list((_flow_faults if kind.startswith("flowchart") else _sequence_faults)(lines))


def _flow_faults(lines: list[str]) -> Iterator[str]:
    titled: set[str] = set()
    for line in lines:
        if re.fullmatch(r"subgraph .+|end|direction (?:LR|TB)|classDef .+|class .+|style .+", line):
            continue
        for node in _ARROW.split(line):
            found = re.fullmatch(rf"({_NODE})({_LABEL})?(?::::{_NODE})?", node)
            if not found:
                yield f"{node!r} in {line!r} is no node"
            elif found[2]:
                titled.add(found[1])
            elif found[1] not in titled | names():
                yield f"{found[1]} is neither titled nor an asset, a job or a sensor"
        for word in re.findall(r"sensor (\w+)", line):
            if word not in names():
                yield f"there is no sensor {word}"


def _sequence_faults(lines: list[str]) -> Iterator[str]:
    known: set[str] = set()
    for line in lines:
        declared = re.fullmatch(rf"(?:participant|actor) ({_NODE})(?: as .+)?", line)
        message = _MESSAGE.fullmatch(line)
        if declared:
            known.add(declared[1])
        elif message:
            yield from (f"{who} is no participant" for who in message.groups() if who not in known)
        elif not _BLOCK.fullmatch(line):
            yield f"{line!r} is neither participant nor message"
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", line):
            if name not in names():
                yield f"{name} is no asset, check, job, sensor or module"


@cache
def names() -> set[str]:
    """Returns the names of the code location: assets, checks, jobs, schedules, sensors; modules."""
    repository = assemble(Settings()).get_repository_def()
    graph = repository.asset_graph
    modules = (path.stem for path in (ROOT / "health_predict").rglob("*.py"))
    return {
        *(key.to_user_string() for key in graph.get_all_asset_keys()),
        *(key.name for key in graph.asset_check_keys),
        *(job.name for job in repository.get_all_jobs()),
        *(schedule.name for schedule in repository.schedule_defs),
        *(sensor.name for sensor in repository.sensor_defs),
        *modules,
    }


@every_page
def test_every_diagram_is_drawn_of_what_there_is(page: Page) -> None:
    faults = [
        f"{fence.line}: {fault}"
        for fence in page.fences
        if fence.language == "mermaid"
        for fault in diagram_faults(fence)
    ]
    assert faults == []


# Blocks that are run.


def marked(mark: str) -> list[tuple[Path, Fence]]:
    """Returns the shell blocks of all pages with a mark."""
    return [
        (path, fence)
        for path in PAGES
        for fence in read(path).fences
        if fence.mark == mark and fence.language == SHELL
    ]


def clone(folder: Path) -> Path:
    """Returns a folder like a clone's root, with a state folder of its own."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("var", ".venv", ".git"):
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "var").mkdir()
    return folder


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a block as somebody would who pastes it, but stops at the first failure."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("HEALTH_PREDICT_")},
            **SILENCED,
            "HEALTH_PREDICT_VAR": str(folder / "var"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@every_page
def test_a_mark_before_a_block_is_one_that_runs_it(page: Page) -> None:
    for fence in page.fences:
        assert fence.mark in ("", RUN, RUN_WITH_SERVICE), f"{fence.line}: {fence.mark}"


def test_blocks_that_need_no_state_run(tmp_path: Path) -> None:
    blocks = marked(RUN)
    assert blocks, "no block is marked to be run"
    root = clone(tmp_path / "clone")
    for path, fence in blocks:
        done = run(fence.content, root)
        assert done.returncode == 0, f"{path.name}:{fence.line}: {done.stdout}{done.stderr}"


def test_blocks_that_ask_the_service_are_answered(tmp_path: Path) -> None:
    blocks = marked(RUN_WITH_SERVICE)
    assert blocks, "no block is marked to be run with the service"
    home, made = bentos.store(tmp_path / "bentos")
    tag = next(iter(made.values())).bento.tag
    root = clone(tmp_path / "clone")
    with served_bento.serve(home, tag, tmp_path / "served") as served:
        for path, fence in blocks:
            script = fence.content.replace("http://127.0.0.1:3500", served.url)
            assert script != fence.content, f"{path.name}:{fence.line} does not ask the service"
            done = run(script, root)
            where = f"{path.name}:{fence.line}"
            assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
            assert "{" in done.stdout, f"{where} was answered {done.stdout!r}"


# The keeper itself.


def page_of(folder: Path, text: str) -> Page:
    path = folder / "page.md"
    path.write_text(text)
    return read(path)


def test_the_keeper_finds_a_broken_link(tmp_path: Path) -> None:
    text = "# A title\n[a](nowhere.md) [b](#no) [c](#a-title) [d](https://pypi.org/x) [e](http://x)"
    faults = " ".join(broken_links(page_of(tmp_path, text)))
    assert [target in faults for target in ("nowhere.md", "#no", "pypi", "http://x")] == [True] * 4


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make dmeo", "no target dmeo"),
        ("make demo SIZE=3", "no variable SIZE"),
        ("health-predict lop", "no command health-predict lop"),
        (".venv/bin/health-predict loop --bathces 3", "no option --bathces"),
        ("health-predict retrain --by me", "needs --why"),
        ("HEALTH_PREDICT_DATE=uci make demo", "no setting HEALTH_PREDICT_DATE"),
        ("curl -s http://127.0.0.1:3500/predictions", "no GET /predictions"),
        ("curl -s http://127.0.0.1:3500/predict", "no GET /predict"),
        ("curl -s http://127.0.0.1:3501/health", "nothing of ours answers"),
        ("python -m benchmarks.nothing", "no module"),
        ("python -m pytest -m containers", "no test is marked"),
        ("python -c 'import'", "python -c"),
        ("cat $(frobnicate)", "nobody knows the program frobnicate"),
        ("kubectl apply -f k8s/nothing.yaml", "no k8s/nothing.yaml"),
        ("true | tee x  # a comment, isn't it", "nobody knows the program true"),
    ],
)
def test_the_keeper_finds_a_command_that_does_not_exist(
    tmp_path: Path, line: str, fault: str
) -> None:
    faults = unknown_commands(page_of(tmp_path, f"```sh\n{line}\n```"))
    assert fault in " ".join(faults)


@pytest.mark.parametrize(
    "line",
    [
        "make demo DATA=path/to/table.zip \\\n  BATCHES=3   # it's a comment",
        "health-predict retrain --by NAME --why 'a reason; with | and ()'",
        "curl -s http://127.0.0.1:3500/predict -H 'content-type: application/json' -d @var/x.json",
        "curl http://$(minikube ip --profile x):30500/health > var/answer 2>/dev/null",
        "python -m pytest -m container",
    ],
)
def test_the_keeper_lets_a_good_command_pass(tmp_path: Path, line: str) -> None:
    assert unknown_commands(page_of(tmp_path, f"```sh\n{line}\n```")) == []


@pytest.mark.parametrize(
    "code",
    [
        *("make nothing", "health-predict nothing", "HEALTH_PREDICT_NOTHING"),
        *("defs/nothing.py", "test_docs.py::test_nothing"),
    ],
)
def test_the_keeper_finds_a_name_that_nothing_has(tmp_path: Path, code: str) -> None:
    assert unknown_names(page_of(tmp_path, f"See `{code}`.")) != []
    good = "`make demo` `make results DATA=...` `settings.py` `var/loop.html` `a b.c`"
    assert unknown_names(page_of(tmp_path / "..", good)) == []


def test_the_keeper_finds_a_figure_without_its_command(tmp_path: Path) -> None:
    table = "| a | b |\n| --- | --- |\n| AUC | 0.67 |\n"
    text = (
        f"# With\n`make results`\n\n{table}\n## Without\n\n{table}\n## Said\nIt took 3.5 ms.\n"
        f"## Prices\n<!-- not measured: prices of May -->\n\n{table}\n"
    )
    faults = figures_without_command(page_of(tmp_path, text))
    assert [fault.split(": ")[1] for fault in faults] == ["Without", "Said"]


@pytest.mark.parametrize(
    ("diagram", "fault"),
    [
        ("pie\n", "begins with"),
        ("flowchart LR\n  raw_encounters --> encountres\n", "encountres is neither"),
        ("flowchart LR\n  raw_encounters -. sensor nothing .-> encounters\n", "no sensor nothing"),
        ("flowchart LR\n  a[b --> encounters\n", "is no node"),
        ("sequenceDiagram\n  participant A\n  A->>B: asks\n", "B is no participant"),
        ("sequenceDiagram\n  participant A\n  A->>A: runs drift_raport\n", "drift_raport is no"),
        ("sequenceDiagram\n  participant A\n  A goes home\n", "neither participant nor message"),
    ],
)
def test_the_keeper_finds_a_diagram_of_what_there_is_not(diagram: str, fault: str) -> None:
    assert fault in " ".join(diagram_faults(Fence("mermaid", diagram, 1, "")))
