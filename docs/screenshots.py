"""Takes the pictures of the docs anew, of the state that `make demo` left: `make screenshots`.

Dagit and the daemon are started on that state and looked at in headless Chromium. What a picture
must show is named beside it: one that lacks it is not taken for a picture.
"""

import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from health_predict import processes
from health_predict.backend import free_port
from health_predict.loop import instance_of
from health_predict.settings import Settings, silence_telemetry
from health_predict_tests.browser import chromium, missing, screen

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

DOCS = Path(__file__).parent
_SECONDS = 90.0


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: file under `docs/`, without suffix.
        address: where it is taken; `{dagit}` and `{var}` are filled in.
        shows: words that have to be on the page.
        width: of the view, pixels.
        height: of the view, pixels.
        unfold: whether Dagit's groups are unfolded first.
        clicks: words that are clicked on, one after the other.
        settle: seconds until it stands still.
        beside: pixels the view grows by then: Dagit lays its tools over the graph it fitted.
    """

    name: str
    address: str
    shows: tuple[str, ...]
    width: int = 1440
    height: int = 900
    unfold: bool = False
    clicks: tuple[str, ...] = ()
    settle: float = 4.0
    beside: int = 0


PICTURES = (
    Picture("loop", "file://{var}/loop.html", ("Synthetic cohort",), 1200, 1220),
    Picture(
        "graph",
        "{dagit}/asset-groups",
        ("registry", "monitoring"),
        1840,
        unfold=True,
        settle=20.0,  # an asset has its colour once its state is known
        beside=60,
    ),
    Picture(
        "partition",
        "{dagit}/assets/drift_report?view=partitions&partition=batch-0003",
        ("batch-0003", "statistic", "threshold"),
    ),
    Picture(
        "checks",
        "{dagit}/assets/registered_model?view=checks",
        ("challenger_beats_champion", "champion_is_recent"),
    ),
    Picture(
        "ticks",
        "{dagit}/locations/health_predict/sensors/retrain_on_drift",
        ("Trains the first champion", "Evaluations"),
        clicks=("6hr", "All ticks", "Requested"),
    ),
)


@contextmanager
def dagit(settings: Settings) -> Iterator[str]:
    """Yields the address of Dagit on the state, whose sensors tick."""
    port = free_port()
    with processes.processes(settings) as group, instance_of(settings):
        group.start("daemon", processes.daemon_command())
        group.start("dagit", processes.webserver_command(port))
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            group.check()
            with suppress(OSError), urllib.request.urlopen(f"{address}/server_info", timeout=5):
                yield address
                return
            time.sleep(0.5)
        raise SystemExit(f"Dagit did not answer: see {group.log('dagit')}")


def take(driver: "Chrome", picture: Picture, address: str) -> None:
    """Writes one picture.

    Raises:
        SystemExit: what it has to show is not there.
    """
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    screen(driver, picture.width, picture.height)
    driver.get(address)
    _wait_for(driver, picture.shows, address)
    if picture.unfold:
        ActionChains(driver).key_down(Keys.ALT).send_keys("e").key_up(Keys.ALT).perform()
    for words in picture.clicks:
        time.sleep(1)
        driver.find_element(By.XPATH, f"//*[normalize-space(text())='{words}']").click()
    time.sleep(picture.settle)
    if picture.beside:
        screen(driver, picture.width + picture.beside, picture.height)
        time.sleep(1)
    driver.execute_script("document.documentElement.style.overflow = 'hidden'")
    target = DOCS / f"{picture.name}.png"
    target.write_bytes(driver.get_screenshot_as_png())
    _shrink(target)


def _wait_for(driver: "Chrome", shows: tuple[str, ...], address: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        text = driver.execute_script("return document.body.innerText") or ""
        absent = [words for words in shows if words not in text]
        if not absent:
            return
        time.sleep(0.5)
    raise SystemExit(f"{address} does not show {', '.join(absent)}")


def _shrink(path: Path) -> None:
    """Keeps 128 colours: a picture in git weighs for ever."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def main(*wanted: str) -> None:
    """Takes the pictures named, or all."""
    silence_telemetry()
    if problem := missing():
        raise SystemExit(problem)
    settings = Settings.of_state()
    if not (settings.var / "loop.html").exists():
        raise SystemExit(f"there is no finished loop in {settings.var}: run `make demo` first")
    with (
        dagit(settings) as address,
        TemporaryDirectory() as profile,
        chromium(Path(profile)) as driver,
    ):
        for picture in PICTURES:
            if wanted and picture.name not in wanted:
                continue
            place = {"dagit": address, "var": settings.var.absolute()}
            take(driver, picture, picture.address.format(**place))
            sys.stdout.write(f"docs/{picture.name}.png\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
