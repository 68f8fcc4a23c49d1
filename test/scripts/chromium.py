"""Chromium without a window, spoken to in the DevTools protocol over a pipe: nothing but Python is needed, and no port is opened."""
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60
# The browser reads from descriptor 3 and writes to 4.
LAUNCH = "import fcntl, os, sys\nr, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])\nos.dup2(r, 3)\nos.dup2(w, 4)\nos.execvp(sys.argv[3], sys.argv[3:])"
KEYS = {" ": ("Space", 32), "/": ("Slash", 191), "?": ("Slash", 191), "Escape": ("Escape", 27), "Enter": ("Enter", 13), "Tab": ("Tab", 9), "ArrowLeft": ("ArrowLeft", 37), "ArrowRight": ("ArrowRight", 39)}


def find():
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """The browser. Messages of all its pages come by one pipe."""

    def __init__(self, *arguments):
        self.folder = tempfile.TemporaryDirectory(prefix="torchbus-chromium-", ignore_cleanup_errors=True)
        to_read, to_write = os.pipe(), os.pipe()
        flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-background-networking",
                 "--hide-scrollbars", "--force-color-profile=srgb", f"--user-data-dir={self.folder.name}", *arguments, "about:blank"]
        self.process = subprocess.Popen([sys.executable, "-c", LAUNCH, str(to_read[0]), str(to_write[1]), find(), *flags], pass_fds=(to_read[0], to_write[1]), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_read[0])
        os.close(to_write[1])
        self.write, self.read = to_read[1], to_write[0]
        self.rest, self.number, self.answers, self.pages = b"", 0, {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.send("Browser.close")
        except (OSError, EOFError, TimeoutError):
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.write)
        os.close(self.read)
        self.folder.cleanup()

    def take(self, seconds):
        """Reads what has come, for at most so long; nothing where nothing comes."""
        if not select.select([self.read], [], [], seconds)[0]:
            return
        received = os.read(self.read, 1 << 20)
        if not received:
            raise EOFError("chromium has ended")
        *messages, self.rest = (self.rest + received).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.answers[message["id"]] = message
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].hear(message["method"], message["params"])

    def send(self, method, session=None, seconds=PATIENCE_S, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        data, number, end = json.dumps(message).encode() + b"\0", self.number, time.monotonic() + seconds
        while data:
            data = data[os.write(self.write, data):]
        while number not in self.answers:
            if time.monotonic() > end:
                raise TimeoutError(f"{method}: no answer within {seconds} s")
            self.take(0.1)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def page(self, width=1280, height=900, **media):
        context = self.send("Target.createBrowserContext")["browserContextId"]  # what a page remembers is not the next one's
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send("Page.bringToFront")  # a tab behind others hears no keys
        page.send("Emulation.setFocusEmulationEnabled", enabled=True)
        page.context = context
        page.size(width, height)
        page.media(**media)
        return page


class Page:
    """A tab. `complaints`: errors of its console, exceptions, and what its security policy has refused."""

    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        self.complaints, self.requests = [], []

    def send(self, method, **parameters):
        return self.browser.send(method, self.session, **parameters)

    def hear(self, method, said):
        if method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(one.get("value", one.get("description"))) for one in said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'", "the page is loaded")

    def close(self):
        self.browser.send("Target.disposeBrowserContext", browserContextId=self.context)
        del self.browser.pages[self.session]

    def size(self, width, height, is_phone=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone)

    def media(self, **features):
        self.send("Emulation.setEmulatedMedia", features=[{"name": name.replace("_", "-"), "value": value} for name, value in features.items()])

    def evaluate(self, expression):
        """The value of an expression; a promise is waited for."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", result["exceptionDetails"]["text"]))
        return result["result"].get("value")

    def until(self, expression, what, seconds=PATIENCE_S):
        end = time.monotonic() + seconds
        while True:
            try:
                if value := self.evaluate(expression):
                    return value
            except RuntimeError as error:  # a page that is being left
                if time.monotonic() > end:
                    raise AssertionError(f"{what}: {error}") from error
            assert time.monotonic() < end, f"not within {seconds} s: {what}; {expression}"
            self.browser.take(0.05)

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.browser.take(left)

    def press(self, key):
        code, number = KEYS.get(key, (f"Key{key.upper()}" if key.isalpha() else f"Digit{key}" if key.isdigit() else "", ord(key.upper()) if len(key) == 1 else 0))
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number, **(text if kind == "keyDown" else {}))

    def type(self, text):
        self.send("Input.insertText", text=text)

    def mouse(self, kind, x, y, **more):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **({"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}) | more)

    def place(self, selector):
        """Middle of an element that is in sight, in pixels."""
        return self.evaluate(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const r = e.getBoundingClientRect(); "
                             "return [r.x + r.width / 2, r.y + r.height / 2, r.width, r.height]; })()")

    def click(self, selector):
        """Where it lies still and nothing covers it."""
        end, before, place = time.monotonic() + PATIENCE_S, None, self.place(selector)
        while place != before or not self.evaluate(f"document.querySelector({json.dumps(selector)}).contains(document.elementFromPoint({place[0]}, {place[1]}))"):
            assert time.monotonic() < end, f"{selector} cannot be clicked on: {place}"
            self.wait(0.1)
            before, place = place, self.place(selector)
        x, y, *_ = place
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def screenshot(self, path, whole=False):
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
