"""A real browser for the tests of pages, and a server for it to look at.

Debian's Chromium through its own driver, both by full path: selenium's manager, which downloads
browsers, never runs. What the browser logged and asked for can be read afterwards.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOST = "127.0.0.1"


def missing() -> str | None:
    """Returns why no browser can be started, None if one can."""
    for path in (CHROMIUM, DRIVER):
        if not path.is_file():
            return f"there is no {path}: apt-get install -y chromium chromium-driver"
    return None


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """Starts Chromium with an empty profile and ends it afterwards."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    try:
        driver.get("about:blank")
        asked(driver)  # what the browser's own first page loaded
        yield driver
    finally:
        driver.quit()


def screen(driver: Chrome, width: int, height: int, scheme: str = "light") -> None:
    """Sets the size of the page's view, pixels, and the colours that the reader prefers.

    Motion is reduced: what is clicked must not be under way.
    """
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preferred = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in preferred.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def console(driver: Chrome) -> list[str]:
    """Returns what the browser complained of since the last call: errors, refused content."""
    return [entry["message"] for entry in driver.get_log("browser")]


def asked(driver: Chrome) -> list[str]:
    """Returns the address of every request that left the page since the last call."""
    events: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in driver.get_log("performance")
    ]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if urlsplit(url).scheme != "data"]


class Server:
    """Serves an app on a port that stays the same when it is stopped and started again.

    Attributes:
        origin: where it is found.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self._port: int = probe.getsockname()[1]
        self.origin = f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Returns once the app answers."""
        config = uvicorn.Config(
            self._app,
            HOST,
            self._port,
            lifespan="off",
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), f"no server could be started on {self.origin}"
            self._thread.join(0.02)

    def stop(self) -> None:
        """Returns once nobody answers."""
        self._server.should_exit = True
        self._thread.join()
