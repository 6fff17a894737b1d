"""A browser without a window, spoken to by the WebDriver protocol: Debian's chromium and chromium-driver."""

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DRIVER = "chromedriver"
# The first that is there: the one without windows has less to do. Not by its script in /usr/bin, which is all that the
# driver would end.
BROWSERS = ("/usr/lib/chromium/chromium-headless-shell", "chromium")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
INTERCEPTED = "element click intercepted"
SPARE = ("SpareRendererForSitePerProcess", "BackForwardCache", "ProactivelySwapBrowsingInstance")  # more processes
WAIT_SECONDS = 60  # what takes this long on a busy machine does not happen at all
LOOKING = """
const [done] = arguments, until = performance.now() + %d;
const look = async () => {
  const value = await (%s);
  if (value || performance.now() > until) done(value);
  else setTimeout(look, 20);
};
look().catch((trouble) => done(null));
"""


def is_there() -> bool:
    return shutil.which(DRIVER) is not None and any(map(shutil.which, BROWSERS))


class Browser:
    """One tab."""

    def __init__(self, driver: httpx.Client, session: str) -> None:
        self._driver = driver
        self._session = session

    def go(self, url: str) -> None:
        self._ask("POST", "url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns: `browser.run("return document.title")`."""
        return self._ask("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str) -> Any:
        """The first value of an expression that is true. The page itself looks, again and again."""
        value = self._ask("POST", "execute/async", {"script": LOOKING % (1000 * WAIT_SECONDS, condition), "args": []})
        assert value, f"it did not happen: {condition}; shown is: {self.run('return document.body.innerText')[:2000]}"
        return value

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def click(self, selector: str) -> None:
        """As soon as nothing else is in its place: a text that grows moves what stands below it."""
        until = time.monotonic() + WAIT_SECONDS
        while (told := self._told("POST", f"element/{self._find(selector)}/click", {})) is not None:
            assert told["error"] == INTERCEPTED and time.monotonic() < until, told["message"]

    def fill(self, selector: str, text: str) -> None:
        """Replace a field's text by typing."""
        element = self._find(selector)
        self._ask("POST", f"element/{element}/clear", {})
        self._ask("POST", f"element/{element}/value", {"text": text})

    def choose(self, selector: str, value: str) -> None:
        """Pick an option."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
        self.run(script, {ELEMENT: self._find(selector)}, value)

    def press(self, *keys: str) -> None:
        """Keys together, where the focus is: `browser.press("\\ue009", "\\ue007")` is Control and Enter."""
        down = [{"type": "keyDown", "value": key} for key in keys]
        up = [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self._ask("POST", "actions", {"actions": [{"type": "key", "id": "keyboard", "actions": down + up}]})

    def light(self, *, is_dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", metrics)

    def share_clipboard(self, origin: str) -> None:
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self._command("Browser.grantPermissions", {"origin": origin, "permissions": permissions})

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", "screenshot")))

    def complaints(self) -> list[str]:
        """What the console was told in red since the last time."""
        return [
            entry["message"] for entry in self._ask("POST", "se/log", {"type": "browser"}) if entry["level"] == "SEVERE"
        ]

    def requested(self) -> list[str]:
        """The addresses that were asked for since the last time."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self._ask("POST", "se/log", {"type": "performance"})
        ]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def _find(self, selector: str) -> str:
        found: dict[str, str] = self._ask("POST", "element", {"using": "css selector", "value": selector})
        return found[ELEMENT]

    def _command(self, name: str, parameters: dict[str, Any]) -> None:
        self._ask("POST", "goog/cdp/execute", {"cmd": name, "params": parameters})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._told(method, path, body)
        assert not (isinstance(answer, dict) and "error" in answer), answer["message"]
        return answer

    def _told(self, method: str, path: str, body: Any) -> Any:
        return self._driver.request(method, f"/session/{self._session}/{path}", json=body).json()["value"]


@contextmanager
def browsing() -> Iterator[Browser]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=4 * WAIT_SECONDS, trust_env=False) as driver:
            session = begin_session(driver)
            try:
                yield Browser(driver, session)
            finally:
                driver.delete(f"/session/{session}")  # or the browser outlives its driver
    finally:
        process.terminate()
        process.wait(10)


def begin_session(driver: httpx.Client) -> str:
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
    arguments += ["--in-process-gpu", "--process-per-site", f"--disable-features={','.join(SPARE)}"]
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": arguments, "binary": next(filter(None, map(shutil.which, BROWSERS)))},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        "timeouts": {"script": 2000 * WAIT_SECONDS},
    }
    for _ in range(20 * WAIT_SECONDS):
        try:
            answer = driver.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
        except httpx.ConnectError:
            time.sleep(0.05)
            continue
        assert "sessionId" in answer, answer.get("message")
        return str(answer["sessionId"])
    raise AssertionError("the driver did not start")
