"""Takes the screenshot of the documentation, docs/images/mlflow.png, in a real MLflow and a real browser.

    python run.py -m sweeps=smoke
    python website/screenshots.py mlflow.db docs/images/mlflow.png

It needs Chromium and the package `websockets`, and opens the view "Results" with the newest sweep.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from PIL import Image
from websockets.sync.client import connect

WIDTH, HEIGHT = 1440, 900
CROP = (0, 0, WIDTH, 580)  # without the empty part of the page
COLORS = 64  # of the PNG
WAIT_SECONDS = 120.0
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", f"--window-size={WIDTH},{HEIGHT}"),
)
PAGE = "#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=results"
# The assistant takes a quarter of the page until a user closes it.
CLOSE_ASSISTANT = (
    "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
    "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
)
EXPANDER = "document.querySelector('.ag-row button').getBoundingClientRect()"


class Page:
    """A page of Chromium, driven by its DevTools protocol."""

    def __init__(self, address: str) -> None:
        self._socket = connect(address, max_size=None)
        self._count = 0
        screen = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **screen)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._count:
            pass
        return dict(answer.get("result", {}))

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def click(self, rectangle: str) -> None:
        left, top = self.run(f"[{rectangle}.x + 5, {rectangle}.y + 5]")
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=left, y=top, button="left", clickCount=1
            )

    def screenshot(self) -> Image.Image:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data)))


def main(store: str, output: str) -> None:
    """Take the screenshot of a store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"sqlite:///{Path(store).resolve()}"
    ui = [sys.executable, "-m", "mlflow", "ui", "--workers=1", f"--port={port}"]
    with TemporaryDirectory() as folder:
        programs = [
            subprocess.Popen(
                [*ui, "--backend-store-uri", uri],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "1"},
            ),
            subprocess.Popen([*CHROMIUM, f"--user-data-dir={folder}", "about:blank"]),
        ]
        try:
            take(f"http://127.0.0.1:{port}/", Path(folder), Path(output))
        finally:
            for program in programs:
                program.terminate()
                program.wait()


def take(server: str, profile: Path, output: Path) -> None:
    """Open the page, expand the newest sweep, and save the screenshot in few colors."""
    wait_for(lambda: urlopen(f"{server}version").read())
    browser = wait_for(lambda: (profile / "DevToolsActivePort").read_text().split()[0])
    targets = wait_for(lambda: json.load(urlopen(f"http://127.0.0.1:{browser}/json")))
    page = Page(next(t for t in targets if t["type"] == "page")["webSocketDebuggerUrl"])
    page.call("Page.navigate", url=f"{server}version")
    wait_for(lambda: page.run("document.readyState == 'complete' && location.host != ''"))
    page.run(CLOSE_ASSISTANT)
    page.call("Page.navigate", url=server + PAGE)
    wait_for(lambda: page.run("document.querySelectorAll('.ag-row button').length"))
    time.sleep(2)  # for the columns of the view
    page.click(EXPANDER)
    wait_for(lambda: page.run("document.querySelectorAll('.ag-row').length > 2"))
    time.sleep(2)
    picture = page.screenshot().convert("RGB").crop(CROP)
    few = picture.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(output, optimize=True)


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return the first value of `condition` that is not false; it may fail until then."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if value := condition():
                return value
        except (OSError, ValueError, IndexError):
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError("the page does not show what it should")
        time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
