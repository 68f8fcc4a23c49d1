#!/usr/bin/env python3
"""Opens the dashboard in Chromium, as people do, beside a run of `torchbus train` and beside a server of messages without a run.

usage: dashboard_test.py [CLASS[.test]...]; programs are those in $TORCHBUS_BUILD, default build/release.
TORCHBUS_SCREENSHOTS=DIR   pictures of what was tested go there
"""
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import chromium
from served import PATIENCE_S, PROGRAM, ROOT, TOKEN, Served, eventually

TORCHBUS = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
SCREENSHOTS = os.environ.get("TORCHBUS_SCREENSHOTS")
MARKUP = "<img/src=x/onerror=document.title='hacked'>"
RUN = {
    "seed": 3,
    "model": {"kind": "mlp", "inputs": 64, "hidden": [128, 128], "classes": 4},
    "data": {"kind": "synthetic", "samples": 6400, "features": 64},
    "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    "schedule": {"kind": "cosine"},
    "train": {"epochs": 100000, "batch_size": 64},
    "callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "gradient_clipping", "max_norm": 1.0}, {"kind": "throughput_monitor", "print": False},
                  {"kind": "event_server", "token_file": "token", "control": True}],
}
# Pixels of a chart that are neither its ground nor grey, as texts and lines of the grid are.
COLOURED = """[...document.querySelectorAll('.card canvas')].map((canvas) => {
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 99 && Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 60) found++;
  return found;
})"""
LEFT = "[...document.querySelectorAll('#facts div')].find((fact) => fact.firstChild.textContent === 'left')?.lastChild.textContent"
# Every chart's plot by its title, as it is drawn: those that are there are built anew.
PLOTS = """(() => {
  window.plots = {};
  window.uPlot = new Proxy(uPlot, {construct: (target, given) => (plots[given[2].closest('.card').querySelector('h3').textContent] = new target(...given))});
  document.getElementById('theme').click();
})()"""

browser = None


def setUpModule():
    global browser
    browser = chromium.Chromium()
    unittest.addModuleCleanup(browser.__exit__, None, None, None)


def text_of(selector):
    return f"document.querySelector({json.dumps(selector)}).textContent"


class Case(unittest.TestCase):
    def enterContext(self, manager):  # in unittest since Python 3.11
        entered = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return entered

    def page(self, url, width=1280, height=900, token=TOKEN, is_phone=False, **media):
        page = browser.page(width, height, **({"prefers_color_scheme": "light"} | media))
        self.addCleanup(page.close)
        if is_phone:
            page.size(width, height, True)
        page.open(url + (f"/#token={token}" if token else "/"))
        return page

    def saves(self, page, name):
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            page.screenshot(Path(SCREENSHOTS) / f"{name}.png")

    def assert_calm(self, page):
        """Nothing was refused, thrown or warned of, and nothing was asked for elsewhere."""
        page.wait(0.2)
        self.assertEqual(page.complaints, [])
        origin = page.evaluate("location.origin")
        self.assertEqual([url for url in page.requests if not url.startswith((origin, "data:", "about:"))], [])


class Training:
    """A run without an end, and where it serves; `server`: options of its event_server."""

    def __init__(self, **server):
        self.folder = tempfile.TemporaryDirectory(prefix="torchbus-dashboard-")
        folder = Path(self.folder.name)
        (folder / "token").write_text(TOKEN + "\n")
        (folder / "run.json").write_text(json.dumps(RUN | {"callbacks": RUN["callbacks"][:-1] + [RUN["callbacks"][-1] | server]}))
        self.errors = folder / "stderr"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen([TORCHBUS, "train", "run.json"], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        eventually(lambda: self.address() or self.process.poll() is not None, "it serves")
        self.url = self.address()
        assert self.url, self.errors.read_text()

    def address(self):
        found = re.search(r"(http://[\w.:\[\]]+)/", self.errors.read_text())
        return found and found[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.folder.cleanup()


class Axes(Case):
    def test_there_are_places_however_near_the_ends_are(self):
        modules = "".join(re.sub(r"(?m)^import .*$|^export ", "", (ROOT / "src/stream/dashboard" / name).read_text()) for name in ("format.js", "scales.js"))
        page = browser.page(200, 200)
        self.addCleanup(page.close)
        for ends, places in (("0.0999999, 0.09999996, 2e-8", ["0.0999999", "0.09999992", "0.09999994", "0.09999996"]),  # uPlot rounds the first of them to 0.1
                             ("-0.3, 0.3, 0.1", ["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]), ("5, 5.05, 0.01", ["5", "5.01", "5.02", "5.03", "5.04", "5.05"]), ("1, 1, 0", [])):
            self.assertEqual(page.evaluate(f"(() => {{ {modules}; return placesOf(linearSplits({ends}), number) }})()"), places)
        self.assertEqual(page.evaluate(f"(() => {{ {modules}; return placesOf([162, 162.5, 163].map((of) => of * 2 ** 20), bytes) }})()"), ["162\xa0MiB", "162.5\xa0MiB", "163\xa0MiB"])


class BesideARun(Case):
    @classmethod
    def setUpClass(cls):
        cls.run_ = Training()
        cls.addClassCleanup(cls.run_.__exit__)

    def open(self, **how):
        page = self.page(self.run_.url, **how)
        page.until(f"{text_of('#connection')} === 'live' && document.querySelectorAll('.card canvas').length > 2 && {COLOURED}.every((found) => found > 20)", "curves are drawn")
        return page

    def test_the_page_shows_the_run_and_takes_the_token_out_of_the_address(self):
        page = self.open()
        self.assertEqual(page.evaluate("[location.hash, sessionStorage.length, JSON.stringify(localStorage).includes('0123456789abcdef')]"), ["", 1, False])
        self.assertEqual(page.evaluate(text_of("#state")), "running")
        page.until(f"/step[0-9,]+/.test({text_of('#facts')}) && /samples\\/s/.test({text_of('#facts')})", "facts")
        titles = page.evaluate("[...document.querySelectorAll('.card h3')].map((title) => title.textContent)")
        for title in ("loss", "accuracy", "learning rate", "gradient norm", "samples per second", "memory"):
            self.assertIn(title, titles)
        self.assertNotIn("tokens per second", titles)  # the data has none
        self.assertEqual(titles[0], "loss")
        before = page.evaluate(text_of("#facts"))
        page.until(f"{text_of('#facts')} !== {json.dumps(before)}", "it goes on")
        page.until("document.querySelectorAll('#events tbody tr').length > 3", "events")
        page.until("document.querySelectorAll('#accounting tbody tr').length > 3", "accounting")
        page.until(f"/^[0-9]/.test({LEFT})", "the time left")
        self.saves(page, "run")
        self.assert_calm(page)

    def test_dragging_over_a_chart_asks_for_that_range_in_detail(self):
        page = self.open()
        x, y, width, _ = page.place(".card .u-over")
        page.requests.clear()
        page.mouse("mousePressed", x - width / 4, y)
        for part in (-0.1, 0, 0.1, 0.2):
            page.mouse("mouseMoved", x + part * width, y, button="left", buttons=1)
        page.mouse("mouseReleased", x + width / 4, y)
        page.until("document.getElementById('window').value === 'zoom'", "it is zoomed")
        eventually(lambda: page.wait(0.1) or any("/curves" in url and "from=" in url and "to=" in url for url in page.requests), "the range is asked for")
        self.saves(page, "zoomed")
        page.press("r")
        page.until("document.getElementById('window').value === '1'", "the whole run is seen again")
        for value in ("0.1", "1"):
            page.evaluate(f"(() => {{ const s = document.getElementById('window'); s.value = '{value}'; s.dispatchEvent(new Event('change')); }})()")
            page.wait(1.2)
        self.assert_calm(page)

    def test_keys(self):
        page = self.open()
        pressed = lambda id: page.evaluate(f"document.getElementById('{id}').getAttribute('aria-pressed')")
        for key, button in (("l", "log"), ("o", "outliers"), (" ", "freeze"), (" ", "freeze"), ("e", "pause-events"), ("e", "pause-events")):
            before = pressed(button)
            page.press(key)
            self.assertNotEqual(pressed(button), before, key)
        page.press("s")
        self.assertEqual(page.evaluate("document.getElementById('smoothing').value"), "25")
        self.saves(page, "smooth_log")
        page.press("x")
        self.assertEqual(page.evaluate("document.getElementById('x').value"), "epoch")
        page.wait(1.2)
        page.until(f"{COLOURED}.some((found) => found > 20)", "curves over epochs")
        page.press("t")
        self.assertEqual(page.evaluate("document.documentElement.dataset.theme"), "dark")
        for key, field in (("/", "name-filter"), ("f", "chart-filter")):
            page.press(key)
            self.assertEqual(page.evaluate("document.activeElement.id"), field)
            page.press("l")  # is typed
            self.assertEqual(page.evaluate("document.activeElement.value"), "l")
            page.press("Escape")
            self.assertNotEqual(page.evaluate("document.activeElement.id"), field)
        self.assertEqual(pressed("log"), "true")
        page.press("?")
        self.assertTrue(page.evaluate("document.getElementById('keys-dialog').open && document.querySelectorAll('#key-list dt').length > 10"))
        page.press("Escape")
        page.until("!document.getElementById('keys-dialog').open", "the list is closed")
        self.assert_calm(page)

    def test_what_is_in_focus_is_reached_by_tab_and_seen(self):
        page = self.open()
        seen = set()
        for _ in range(12):
            page.press("Tab")
            seen.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            if page.evaluate("document.activeElement.id") == "freeze":
                self.assertNotEqual(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"), "none")
        self.assertLessEqual({"run", "save", "pause", "stop", "freeze"}, seen)
        unnamed = page.evaluate("""[...document.querySelectorAll('button, input, select')].filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label') || one.closest('label'))).map((one) => one.outerHTML)""")
        self.assertEqual(unnamed, [])

    def test_a_chart_is_found_by_its_name(self):
        page = self.open()
        page.press("f")
        page.type("norm")
        page.until("document.querySelectorAll('.card').length === 1", "one is left")
        self.assertEqual(page.evaluate(text_of(".card h3")), "gradient norm")
        page.evaluate("(() => { const f = document.getElementById('chart-filter'); f.value = 'nothing'; f.dispatchEvent(new Event('input')); })()")
        self.assertEqual(page.evaluate("[document.getElementById('no-charts').hidden, document.getElementById('no-charts').textContent]"), [False, "No curve is called so."])
        self.assert_calm(page)

    def test_dark_and_light_follow_the_system_and_the_button(self):
        ground = "getComputedStyle(document.body).backgroundColor"
        page = self.open(prefers_color_scheme="dark")
        dark = page.evaluate(ground)
        self.saves(page, "dark")
        page.click("#theme")
        light = page.evaluate(ground)
        self.assertGreater(sum(map(int, re.findall(r"\d+", light)[:3])), 3 * sum(map(int, re.findall(r"\d+", dark)[:3])))
        page.open(self.run_.url)
        page.until(f"{ground} === {json.dumps(light)}", "the choice is remembered")
        self.assert_calm(page)

    def test_a_phone_has_nothing_beside_its_screen(self):
        page = self.open(width=360, height=740, is_phone=True)
        self.assertEqual(page.evaluate("[document.documentElement.scrollWidth, Math.max(...[...document.querySelectorAll('main > section, .card, #bar')].map((one) => Math.ceil(one.getBoundingClientRect().right)))]"), [360, 348 + 12])
        small = page.evaluate("[...document.querySelectorAll('#bar button')].filter((one) => one.offsetParent && one.getBoundingClientRect().height < 32).map((one) => one.id)")
        self.assertEqual(small, [])
        self.saves(page, "phone")
        self.assert_calm(page)

    def test_who_asks_and_why_is_shown_as_text(self):
        page = self.open()
        page.evaluate(f"""fetch('/control', {{method: 'POST', headers: {{Authorization: 'Bearer {TOKEN}'}}, body: JSON.stringify({{command: 'evaluate', by: 'somebody', reason: {json.dumps(MARKUP)}}})}}).then((r) => r.status)""")
        page.until(f"{text_of('#decisions')}.includes({json.dumps(MARKUP)})", "the decision with its reason")
        page.until(f"{text_of('#events')}.includes({json.dumps(MARKUP)})", "the event")
        self.assertEqual(page.evaluate("[document.images.length, document.title.includes('hacked')]"), [0, False])
        page.place("#decisions")
        self.saves(page, "decisions")
        self.assert_calm(page)

    def test_pause_and_resume(self):
        page = self.open()
        page.click("#pause")
        page.until(f"{text_of('#state')} === 'paused' && {text_of('#pause')} === 'Resume'", "it is paused")
        page.until(f"{LEFT} === undefined", "a run that stands has no end in sight")
        self.saves(page, "paused")
        page.click("#pause")
        page.until(f"{text_of('#state')} !== 'paused'", "it goes on")
        page.until(f"/^[0-9]/.test({LEFT})", "the time left")
        self.assert_calm(page)

    def test_a_wrong_token_is_asked_for_again(self):
        page = self.page(self.run_.url, token="wrong-wrong-wrong-wrong")
        page.until("document.getElementById('token-dialog').open", "the field")
        page.type(TOKEN)
        page.press("Enter")
        page.until(f"{text_of('#connection')} === 'live' && {text_of('#state')} === 'running'", "it is let in")
        self.assertEqual([one for one in page.complaints if "401" not in one], [])

    def test_a_page_out_of_sight_asks_for_nothing(self):
        page = self.open()
        page.evaluate("(() => { Object.defineProperty(document, 'hidden', {get: () => window.isAway, configurable: true}); window.isAway = true; document.dispatchEvent(new Event('visibilitychange')); })()")
        page.wait(1)
        page.requests.clear()
        page.wait(2.5)
        self.assertEqual(page.requests, [])
        page.evaluate("(() => { window.isAway = false; document.dispatchEvent(new Event('visibilitychange')); })()")
        eventually(lambda: page.wait(0.1) or any("/events" in url for url in page.requests), "it follows again")
        self.assert_calm(page)

    def test_it_asks_little(self):
        page = self.open()
        page.requests.clear()
        page.wait(5)
        self.assertLessEqual(sum("/curves" in url for url in page.requests), 6)
        self.assertLessEqual(len(page.requests), 18)


class BesideRecordings(Case):
    def test_curves_of_recorded_ranks_lie_beside_the_run_and_can_be_hidden(self):
        folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="torchbus-dashboard-")))
        recorded = RUN | {"data": RUN["data"] | {"samples": 320}, "train": {"epochs": 2, "batch_size": 16}, "callbacks": [{"kind": "data_parallel"}, {"kind": "metrics", "accuracy": True}, {"kind": "event_file"}]}
        (folder / "run.json").write_text(json.dumps(recorded))
        done = subprocess.run([TORCHBUS, "launch", "--nproc-per-node", "2", "--", TORCHBUS, "train", "run.json"], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3 * PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        files = [folder / "events.jsonl", folder / "events.rank1.jsonl"]
        ids = {json.loads(file.read_text().partition("\n")[0])["run"] for file in files}
        self.assertEqual(len(ids), 1, "it is one run")
        recorded_run = ids.pop()
        run = self.enterContext(Training(compare=list(map(str, files))))
        page = self.page(run.url)
        page.evaluate(PLOTS)
        drawn = lambda of_rank_0, of_rank_1, live: (f"((labels) => labels.some((one) => one.includes('events.jsonl')) === {of_rank_0} && labels.some((one) => one.includes('events.rank1.jsonl')) === {of_rank_1}"
                                                    f" && labels.some((one) => !one.includes('.jsonl')) === {live})((plots.loss?.series ?? []).slice(1).map((one) => one.label ?? ''))")
        page.until(drawn("true", "true", "true"), "a curve of each rank, and of the run under way")
        page.until(f"{COLOURED}.some((found) => found > 20)", "curves are drawn")
        self.saves(page, "beside_recordings")
        page.click(f'#runs [data-toggles="{recorded_run}:1"]')
        page.until(drawn("true", "false", "true"), "one rank is hidden")
        page.click(f'#runs [data-toggles="{recorded_run}"]')
        page.until(drawn("false", "false", "true"), "the run under way alone")
        page.press("2")
        page.until(drawn("true", "true", "true"), "all are there again")
        self.assert_calm(page)


class AtTheEnd(Case):
    def test_the_stop_button_asks_first_and_then_stops_the_run(self):
        with Training() as run:
            page = self.page(run.url)
            page.until(f"{text_of('#state')} === 'running'", "it runs")
            page.click("#stop")
            self.assertTrue(page.evaluate("document.getElementById('stop-dialog').open"))
            page.click("#stop-no")
            page.wait(0.5)
            self.assertIsNone(run.process.poll())
            page.click("#stop")
            page.type("it is good enough")
            page.press("Enter")
            self.assertFalse(page.evaluate("document.getElementById('stop-dialog').open"), "the button behind it was pressed, too")
            self.assertEqual(run.process.wait(PATIENCE_S), 0, run.errors.read_text())
            page.until(f"/no answer/.test({text_of('#connection')}) || {text_of('#state')} === 'stopped'", "the page tells that it is over")
            self.saves(page, "stopped")


class Proxy:
    """Stands before a server, and can cut all connections; keeps the heads of requests."""

    def __init__(self, port):
        self.port_behind, self.open, self.heads = port, [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.cut()

    def accept(self):
        while True:
            try:
                front, _ = self.listener.accept()
                back = socket.create_connection(("127.0.0.1", self.port_behind))
            except OSError:
                return
            self.open += [front, back]
            threading.Thread(target=self.pump, args=(front, back, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(back, front, False), daemon=True).start()

    def pump(self, source, target, is_request):
        try:
            while received := source.recv(1 << 16):
                if is_request:
                    self.heads.append(received.decode(errors="replace"))
                target.sendall(received)
        except OSError:
            pass
        self.end(source, target)

    @staticmethod
    def end(*connections):
        for one in connections:
            try:
                one.shutdown(socket.SHUT_RDWR)  # wakes who waits for it, as close does not
            except OSError:
                pass
            one.close()

    def cut(self):
        self.end(*self.open)
        self.open.clear()


class BesideAServer(Case):
    def serve(self):
        server = self.enterContext(Served())
        return server, self.enterContext(Proxy(server.port))

    def test_eventsource_gets_messages_in_order_and_goes_on_after_a_broken_connection(self):
        server, proxy = self.serve()
        server.tell("publish 500")
        page = self.page(f"http://127.0.0.1:{proxy.port}")
        page.evaluate("""(() => { window.got = []; const source = new EventSource('/events?events=told');
                          source.onmessage = (event) => { const data = JSON.parse(event.data).data; if (data.number) got.push(data.number); }; })()""")
        page.until("got.length === 500", "what is kept of the past")
        proxy.cut()
        server.tell("publish 500")
        page.until("got.length >= 1000", "it goes on")
        self.assertEqual(page.evaluate("got"), list(range(1, 1001)))
        self.assertTrue(any(re.search(r"GET /events\?events=told.*Last-Event-ID: run-1:500\r", head, re.S | re.I) for head in proxy.heads))

    def test_the_page_goes_on_too_and_shows_no_event_twice(self):
        server, proxy = self.serve()
        server.tell("publish 20")
        page = self.page(f"http://127.0.0.1:{proxy.port}")
        ids = "[...document.querySelectorAll('#events tbody tr')].map((row) => Number(row.dataset.id))"
        page.until(f"{ids}.length === 20", "events")
        proxy.cut()
        page.until(f"{text_of('#connection')} !== 'live'", "it tells of the broken connection", 20)
        server.tell("publish 20")
        page.until(f"{ids}.length >= 40", "it goes on")
        self.assertEqual(page.evaluate(ids), list(range(40, 0, -1)))
        page.until(f"{text_of('#connection')} === 'live'", "it tells that all is well")

    def test_events_are_filtered_by_name_and_by_text(self):
        server, proxy = self.serve()
        server.tell("publish 30")
        page = self.page(f"http://127.0.0.1:{proxy.port}")
        rows = "document.querySelectorAll('#events tbody tr').length"
        page.until(f"{rows} === 30", "events")
        for field, text, left in (("name-filter", "eval_*", 0), ("name-filter", "to*d", 30), ("name-filter", "ol", 30), ("text-filter", '"number":17', 1)):
            with self.subTest(field=field, text=text):
                page.evaluate(f"(() => {{ const f = document.getElementById('{field}'); f.value = {json.dumps(text)}; f.dispatchEvent(new Event('input')); }})()")
                self.assertEqual(page.evaluate(rows), left)
        page.evaluate("document.querySelector('#events summary').click()")
        page.until('document.querySelector("#events pre").textContent.includes(\'"sequence": "0000000000000017"\')', "the whole message")
        self.assert_calm(page)

    def test_what_is_held_back_is_shown_afterwards(self):
        server, proxy = self.serve()
        page = self.page(f"http://127.0.0.1:{proxy.port}")
        page.until(f"{text_of('#connection')} === 'live'", "it is there")
        page.click("#pause-events")
        server.tell("publish 5")
        page.wait(1)
        self.assertEqual(page.evaluate("document.querySelectorAll('#events tbody tr').length"), 0)
        page.click("#pause-events")
        page.until("document.querySelectorAll('#events tbody tr').length === 5", "they are shown")

    def test_a_hundred_thousand_events_leave_the_page_quick(self):
        server, proxy = self.serve()
        page = self.page(f"http://127.0.0.1:{proxy.port}")
        page.until(f"{text_of('#connection')} === 'live'", "it is there")
        began = time.monotonic()
        server.tell("publish 100000")
        page.until("Number(document.querySelector('#events tbody tr')?.dataset.id) === 100000", "the last one")
        self.assertLess(time.monotonic() - began, 30)
        self.assertLessEqual(page.evaluate("document.querySelectorAll('#events tbody tr').length"), 300)

    def test_a_curve_of_a_million_points_is_drawn_soon_with_its_peak(self):
        server = self.enterContext(Served())
        server.tell("numbers 1000000")
        server.tell(f"drain {PATIENCE_S * 1000}")
        began = time.monotonic()
        page = self.page(f"http://127.0.0.1:{server.port}")
        page.evaluate(PLOTS)
        page.until(f"plots.loss?.data[0].at(-1) === 1000000 && {COLOURED}.every((found) => found > 20)", "it is drawn")
        self.assertLess(time.monotonic() - began, 15)
        points, highest, at = page.evaluate("((x, y) => [x.length, Math.max(...y), x[y.indexOf(Math.max(...y))]])(plots.loss.data[0], plots.loss.data[1])")
        self.assertLessEqual(points, 1010)
        self.assertGreater(points, 400)
        self.assertEqual((highest, at), (50, 777))
        self.saves(page, "a_million_points")
        self.assert_calm(page)

    def test_smoothing_and_a_logarithmic_axis_change_what_is_drawn(self):
        server = self.enterContext(Served())
        server.tell("numbers 3000")
        page = self.page(f"http://127.0.0.1:{server.port}")
        page.evaluate(PLOTS)
        page.until("plots.loss?.data[0].at(-1) === 3000", "it is drawn")
        picture = "plots.loss.ctx.canvas.toDataURL()"
        way = lambda i: page.evaluate(f"plots.loss.data[{i}].filter((y) => y !== null && y !== undefined).reduce(([sum, last], y) => [sum + Math.abs(y - (last ?? y)), y], [0])[0]")
        plain, rough = page.evaluate(picture), way(1)
        page.press("s")
        page.until(f"plots.loss.series.length === 3 && {picture} !== {json.dumps(plain)}", "a smooth curve over the rough one")
        smooth = page.evaluate(picture)
        self.assertEqual(way(1), rough)
        self.assertLess(way(2), 0.2 * rough)
        page.press("l")
        page.until(f"plots.loss.scales.y.distr === 3 && {picture} !== {json.dumps(smooth)}", "a logarithmic axis")
        page.press("l")
        for _ in range(3):
            page.press("s")
        page.until(f"plots.loss.series.length === 2 && {picture} === {json.dumps(plain)}", "as it was")
        self.assert_calm(page)

    def test_a_server_without_control_offers_none(self):
        server = self.enterContext(Served(token=""))
        server.tell("publish 3")
        page = self.page(f"http://127.0.0.1:{server.port}", token=None)
        page.until(f"{text_of('#connection')} === 'live' && {text_of('#state')} === 'running'", "there is a run")
        self.assertEqual(page.evaluate("['save', 'evaluate', 'pause', 'stop', 'key'].filter((id) => document.getElementById(id).offsetParent)"), [])
        self.assert_calm(page)
        self.assertEqual(page.evaluate("fetch('/control', {method: 'POST', body: '{\"command\": \"stop\"}'}).then((answer) => answer.status)"), 403)
        self.assertIsNone(server.next_command())

    def test_the_name_of_a_run_is_text(self):
        server, proxy = self.serve()
        server.tell(f"begin {MARKUP}")
        server.tell("publish 3")
        page = self.page(f"http://127.0.0.1:{proxy.port}")
        page.until(f"{text_of('#run')}.includes({json.dumps(MARKUP)})", "the run's name")
        self.assertEqual(page.evaluate("[document.images.length, document.title === 'hacked']"), [0, False])
        self.assert_calm(page)

    def test_commands_of_the_buttons_arrive(self):
        server, proxy = self.serve()
        server.tell("publish 1")
        page = self.page(f"http://127.0.0.1:{proxy.port}")
        page.until("!document.getElementById('controls').hidden && !document.getElementById('save').disabled", "there is a run")
        for button in ("save", "evaluate", "pause"):
            page.click(f"#{button}")
        page.until("document.querySelectorAll('#toasts p').length === 3", "they are answered")
        server.tell("drain 0")
        self.assertEqual(sorted(server.commands), [f"command {name} by dashboard at 127.0.0.1 because asked for on the dashboard .=null" for name in ("evaluate", "pause", "save")])
        self.assert_calm(page)


def main():
    for program in (PROGRAM, TORCHBUS):
        if not program.exists():
            print(f"{program} is not built")
            return 77
    if not chromium.find():
        print(f"there is none of {', '.join(chromium.NAMES)}")
        return 77
    with Served() as server:
        if server.http("GET /")[0] == 404:
            print("this torchbus was built without uPlot, and so without the dashboard")
            return 77
    return 0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
