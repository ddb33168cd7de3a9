"""A page in a real Chromium, driven over its debugging protocol on loopback."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]
PATIENCE = 120  # seconds, for machines with much to do


class Page:
    """A tab. `faults` and `requests` fill up while commands are sent to it."""

    def __init__(self, socket: websocket.WebSocket):
        self.socket = socket
        self.sent = 0
        self.faults: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        self.socket.send(json.dumps(message))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == self.sent:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        if said["method"] == "Runtime.exceptionThrown":
            self.faults.append(str(said["params"]["exceptionDetails"]))
        if said["method"] == "Network.requestWillBeSent":
            self.requests.append(said["params"]["request"]["url"])

    def open(self, path: Path, *, width: int = 1280, before: str = "") -> None:
        """Open a file. `before` is run in the page before its own scripts."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self.send("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)
        self.send("Page.addScriptToEvaluateOnNewDocument", source=before)
        self.send("Page.navigate", url=path.as_uri())
        here = json.dumps(path.as_uri())
        self.until(f"location.href === {here} && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        asked = {"expression": expression, "returnByValue": True}
        found = self.send("Runtime.evaluate", **asked, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, f"This never came: {expression}"
            time.sleep(0.1)

    def press(self, key: str, text: str = "") -> None:
        """Press a key, by the name that JavaScript has for it."""
        code = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}[key]
        both = {"key": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **both, text=text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **both)


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A fresh Chromium that keeps its files in this folder."""
    assert CHROMIUM is not None, f"none of {', '.join(NAMES)} is on the path"
    command = [CHROMIUM, *SWITCHES, f"--user-data-dir={folder}", "about:blank"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            address = _address(folder / "DevToolsActivePort")
            socket = websocket.create_connection(
                address, timeout=PATIENCE, http_no_proxy=["127.0.0.1"]
            )
            try:
                yield Page(socket)
            finally:
                socket.close()
        finally:
            process.terminate()


def _address(port_file: Path) -> str:
    """Where the first tab listens, once there is one."""
    ask = build_opener(ProxyHandler({})).open
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if port_file.exists() and port_file.read_text(encoding="ascii").strip():
            port = port_file.read_text(encoding="ascii").split()[0]
            with ask(f"http://127.0.0.1:{port}/json") as answer:
                tabs = [one for one in json.load(answer) if one["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise AssertionError("Chromium did not start.")
