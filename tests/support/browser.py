"""A headless Chromium, driven over a pipe by its DevTools protocol: no port, no driver, no library.

Messages are JSON ended by a NUL, to the browser on its descriptor 3 and from it on 4 (``--remote-debugging-pipe``).
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60.0


def find_browser() -> str | None:
    """Return the path of a browser this module can drive, or None."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Page:
    """One tab.

    Attributes:
        requests: addresses the page asked for, its own file apart.
        dialogs: texts of alerts and their like, each a proof that a stranger's code ran.
        complaints: what the console was told, violations of the content security policy among it.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.complaints: list[str] = []
        self._browser = browser
        self._session = session
        self._loaded = False
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Carry out one command of the protocol; return its result."""
        return self._browser.send(method, parameters, self._session)

    def open(self, path: Path, *, fragment: str = "") -> float:
        """Load a file; return the seconds until the page's own script had drawn it.

        A second opening under another fragment would be no load, so the page is left in between.
        """
        self._go("about:blank")
        began = time.monotonic()
        self._go(f"{path.as_uri()}{fragment}")
        self.wait("document.documentElement.dataset.ready === 'yes'")
        return time.monotonic() - began

    def _go(self, url: str) -> None:
        self._loaded = False
        self.send("Page.navigate", url=url)
        self._browser.wait(lambda: self._loaded)

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression; a promise is awaited.

        Raises:
            AssertionError: it threw.
        """
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript condition holds."""
        limit = int(PATIENCE_S * 1000)
        self.evaluate(
            f"new Promise((done, fail) => {{ const end = performance.now() + {limit};"
            f" const look = () => ({condition}) ? done() : performance.now() > end"
            f" ? fail(new Error({json.dumps(condition)} + ' did not come')) : setTimeout(look, 10); look(); }})"
        )

    def text(self, selector: str = "body") -> str:
        """Return the text of the first element that fits, hidden parts included."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        """Click on the middle of the first element that fits, as a mouse would."""
        x, y = self.evaluate(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center'}); const r = node.getBoundingClientRect();"
            " return [r.left + r.width / 2, r.top + Math.min(r.height / 2, 15)]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        codes = {"Enter": 13, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39, "End": 35, "Home": 36}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes.get(key, 0), **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes.get(key, 0))

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def look(self, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Set the window's size and whether the user prefers light or dark."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def hear(self, method: str, said: dict[str, Any]) -> None:
        """Take in an event of the protocol."""
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(said["message"])
            self._browser.post("Page.handleJavaScriptDialog", {"accept": False}, self._session)
        elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith("file:"):
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"])[:500])
        elif method == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])


class Browser:
    """A browser process with a profile of its own; :func:`browser` starts and ends it."""

    def __init__(self, to: int, frm: int) -> None:
        self._to = to
        self._from = frm
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}
        self._rest = b""

    def page(self) -> Page:
        """Open a tab."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        return page

    def post(self, method: str, parameters: dict[str, Any], session: str | None = None) -> int:
        """Send a command and do not wait."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._to, data) :]
        return number

    def send(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Send a command; return its result.

        Raises:
            AssertionError: the browser refused it.
        """
        number = self.post(method, parameters, session)
        self.wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def wait(self, done: Any) -> None:
        """Take in what the browser says until ``done()``.

        Raises:
            AssertionError: it did not come, or the browser ended.
        """
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not done():
            ready, _, _ = select.select([self._from], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                raise AssertionError("the browser is gone" if ready else "the browser did not answer")
            *messages, self._rest = (self._rest + data).split(b"\0")
            for message in map(json.loads, messages):
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.hear(message["method"], message["params"])


@contextlib.contextmanager
def browser(path: str) -> Iterator[Browser]:
    """Run the browser at ``path`` until the block is left."""
    with tempfile.TemporaryDirectory(prefix="rlm-browser-") as profile, contextlib.ExitStack() as stack:
        inward, outward = os.pipe(), os.pipe()
        options = ["--headless", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
        options += ["--disable-background-networking", "--disable-component-update", "--no-default-browser-check"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium refuses to make its own as root.
        # The shell puts the pipes where the browser looks for them. Not sh: dash takes one digit for what they were.
        line = f'exec "$@" 3<&{inward[0]} 4>&{outward[1]}'
        command = ["bash", "-c", line, "bash", path, *options, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command,
            pass_fds=(inward[0], outward[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(_end, process)
        for end in (inward[0], outward[1]):
            os.close(end)
        stack.callback(os.close, outward[0])
        stack.callback(os.close, inward[1])
        yield Browser(inward[1], outward[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    # The group is the browser's own: it was started as the leader of a new session.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
