/** The page: asks how the run is, shows it, and takes what a person does. */

import { Controls } from "./controls.js";
import { Board } from "./curves.js";
import { duration } from "./format.js";
import { listenToKeys } from "./keys.js";
import { Accounting, Events, nameOf, showDecisions } from "./panels.js";
import { Clock, ENDED, factsOf, progressOf, showFacts } from "./progress.js";
import { idsOf, showRuns } from "./runs.js";
import { EventStream, get, Refusal, takeToken } from "./stream.js";

const POLL_MS = 1000, STALE_MS = 12_000, IDLE_POLL_MS = 5000;
const $ = (id) => document.getElementById(id);
const remember = (name, value) => { try { localStorage.setItem(`torchbus.${name}`, value); } catch { /* the page works without */ } };
const remembered = (name) => { try { return localStorage.getItem(`torchbus.${name}`); } catch { return null; } };

const page = { runs: [], hidden: new Set(), colours: new Map(), chosen: "", isFollowing: true, state: null, stateOf: "", isFrozen: false, heard: 0, failures: 0, allowsControl: false, needsToken: false, stream: "waiting", said: "", lastCurves: 0, curvesTook: 0 };
const clock = new Clock();
const board = new Board($("charts"), { onZoom: showRange, onFailure: failed });
const accounting = new Accounting($("accounting"), $("accounting-count"), $("by-event"));
const events = new Events({ body: $("events").tBodies[0], counter: $("events-count"), empty: $("no-events"), names: $("event-names"), nameFilter: $("name-filter"), textFilter: $("text-filter"), detail: $("detail") });
const controls = new Controls({ onAccepted: soon, onToken: () => {
  page.asked = false;
  page.said = "";
  follow(false);
  poll();
} });
const stream = new EventStream((messages) => {
  page.heard = performance.now();
  events.add(messages.filter((message) => nameOf(message) !== "snapshot"));
  if (messages.some((message) => ["decision_taken", "run_closed", "checkpoint_saved"].includes(nameOf(message)))) soon();
}, (state, detail) => {
  page.stream = state;
  page.said = state === "refused" ? detail : "";
  showConnection();
});

// what the server says
let timer, isAsking = false;
function soon() {
  clearTimeout(timer);
  timer = setTimeout(poll, 150);
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || page.isFrozen || isAsking) return;
  isAsking = true;
  try {
    takeRuns(await get("/runs"));
    await takeState();
    page.failures = 0;
    if (page.stream !== "refused") page.said = "";
    page.heard = performance.now();
    const now = performance.now();
    if (now - page.lastCurves > 4 * page.curvesTook) {
      await board.refresh();
      page.lastCurves = performance.now();
      page.curvesTook = page.lastCurves - now;
    }
  } catch (error) {
    failed(error);
  }
  isAsking = false;
  show();
  const isQuiet = page.runs.every((run) => !run.isLive || ENDED.has(run.state));
  timer = setTimeout(poll, page.failures ? Math.min(POLL_MS * 2 ** page.failures, 15_000) : isQuiet ? IDLE_POLL_MS : POLL_MS);
}

function failed(error) {
  page.failures++;
  if (!(error instanceof Refusal)) return;
  page.said = error.message;
  if (error.status === 401 && !page.asked) (page.asked = true), controls.askForToken(error.message);
}

function takeRuns(answer) {
  const keys = new Set(), known = answer.runs.filter((run) => run.run && !keys.has(`${run.run}:${run.rank}`) && keys.add(`${run.run}:${run.rank}`));
  page.allowsControl = answer.allows_control;
  page.needsToken = answer.needs_token;
  page.runs = known.map((run) => {
    if (!page.colours.has(run.run)) page.colours.set(run.run, page.colours.size);
    const ranks = known.filter((one) => one.run === run.run).map((one) => one.rank).sort((a, b) => a - b);
    const key = `${run.run}:${run.rank}`;
    return { ...run, key, isLive: run.is_live, label: run.label || run.run, sequence: run.last_sequence, names: run.names ?? [], colour: page.colours.get(run.run), dash: ranks.indexOf(run.rank), isShown: !page.hidden.has(key) };
  });
  if (page.isFollowing || !chosen()) page.chosen = (page.runs.find((run) => run.isLive) ?? page.runs[0])?.key ?? "";
  showRuns(page.runs, page.chosen);
  arrange();
}

function arrange() {
  const groups = board.arrange(page.runs);
  $("no-charts").hidden = groups > 0;
  $("no-charts").textContent = !board.filter ? page.runs.some((run) => run.isShown) || !page.runs.length ? "No numbers yet. Curves appear with the first that a callback publishes." : "No run is chosen." : "No curve is called so.";
}

const chosen = () => page.runs.find((run) => run.key === page.chosen);

async function takeState() {
  const run = chosen();
  if (!run) return;
  const key = `${run.key} ${run.sequence} ${run.state}`;
  if (key === page.stateOf) return;
  const told = await get("/state", { run: run.run, rank: run.rank });
  page.state = { ...told.data, seconds: Date.parse(told.time) / 1000 };
  page.stateOf = key;
}

// what is shown
function show() {
  showConnection();
  const run = chosen();
  $("state").textContent = run?.state ?? (page.heard ? "idle" : "…");
  $("state").dataset.state = run?.state ?? "idle";
  if (!run) return showControls();
  const state = page.stateOf.startsWith(`${run.key} `) ? page.state : null;
  const share = progressOf(state?.position ?? run.position, state?.start ?? run.start);
  clock.see(run, share, state?.seconds);
  const percent = share === null ? null : Math.floor(share * 1000) / 10;
  $("done").style.transform = `scaleX(${share ?? 0})`;
  $("progress").dataset.state = run.state;
  if (percent === null) $("progress").removeAttribute("aria-valuenow");
  else $("progress").setAttribute("aria-valuenow", percent);
  showFacts($("facts"), [...(percent === null ? [] : [["done", `${percent} %`]]), ...factsOf(run, state, share, clock)]);
  document.title = `${percent !== null && !ENDED.has(run.state) ? `${Math.floor(percent)} %` : run.state} · ${run.label} – torchbus`;
  showDecisions($("decisions"), $("decisions-count"), state?.decisions ?? []);
  accounting.show(state?.accounting ?? null);
  showBanner(run, state);
  showControls();
}

function showBanner(run, state) {
  const result = state?.end?.result;
  const told = result && ENDED.has(run.state) && run.state !== "finished" ? `${run.state}${result.requester ? ` by ${result.requester}` : ""}: ${result.reason || "no reason was given"}` : "";
  $("banner").hidden = !told;
  $("banner").dataset.state = run.state;
  if ($("banner").textContent !== told) $("banner").textContent = told;
}

function showConnection() {
  const quiet = performance.now() - page.heard, place = $("connection");
  const isLost = page.failures > 1 || (page.heard && quiet > STALE_MS && !document.hidden);
  const [state, text] = page.isFrozen ? ["frozen", "frozen"]
    : page.said ? ["lost", page.said]
    : isLost ? ["lost", `no answer${page.heard ? ` for ${duration(Math.round(quiet / 1000))}` : ""}; trying again`]
    : page.stream === "live" ? ["live", "live"] : ["waiting", "connecting"];
  place.dataset.state = state;
  if (place.textContent !== text) place.textContent = text;
  document.body.classList.toggle("stale", state === "lost");
}

function showControls() {
  const live = page.runs.find((run) => run.isLive);
  controls.show({ isAllowed: page.allowsControl, isOver: !live || ENDED.has(live.state), isPaused: live?.state === "paused", needsToken: page.needsToken });
}

function toggle(what) {
  const its = page.runs.filter((run) => run.run === what || run.key === what), isShown = its.some((run) => run.isShown);
  for (const run of its) page.hidden[isShown ? "add" : "delete"](run.key), (run.isShown = !isShown);
  showRuns(page.runs, page.chosen);
  arrange();
  board.refresh();
}

function showRange() {
  $("window").querySelector("[value=zoom]").hidden = !board.zoomed;
  $("window").value = board.zoomed ? "zoom" : String(board.window);
  $("reset").classList.toggle("given", Boolean(board.range));
}

// what a person does
function follow(again) {
  const wanted = { milestones: { every: "10s" }, "5s": { every: "5s" }, "100step": { every: "100step" }, all: {} }[$("detail").value];
  stream.open({ events: "*", ...wanted, from: "start" }, again);
}

function freeze(isFrozen) {
  page.isFrozen = isFrozen;
  $("freeze").setAttribute("aria-pressed", String(isFrozen));
  events.hold(isFrozen || $("pause-events").getAttribute("aria-pressed") === "true");
  showConnection();
  if (!isFrozen) poll();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  board.repaint();
}
const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function pressed(button, isPressed) {
  button.setAttribute("aria-pressed", String(isPressed));
  return isPressed;
}
const flip = (button) => pressed(button, button.getAttribute("aria-pressed") !== "true");
function setSmoothing(value) {
  $("smoothing").value = value;
  board.smoothing = (value / 100) ** 2 * 0.2;
  board.redraw();
}
function next(select) {
  const options = [...select.options].filter((option) => !option.hidden);
  select.value = options[(options.findIndex((option) => option.value === select.value) + 1) % options.length].value;
  select.dispatchEvent(new Event("change"));
}
const KEYS = {
  " ": ["space", "freeze the page, or go on", () => freeze(!page.isFrozen)],
  s: ["s", "more smoothing, then none", () => setSmoothing([0, 25, 50, 80].find((value) => value > $("smoothing").value) ?? 0)],
  l: ["l", "logarithmic axes", () => $("log").click()],
  o: ["o", "clip outliers", () => $("outliers").click()],
  x: ["x", "next x axis", () => next($("x"))],
  w: ["w", "next range: whole run, last half, …", () => next($("window"))],
  r: ["r", "whole range again", () => board.zoom(null)],
  "+": ["+ −", "zoom in, out", () => board.move(0.5, 0)],
  "-": [null, null, () => board.move(2, 0)],
  ArrowLeft: ["← →", "move the range", () => board.move(1, -0.25)],
  ArrowRight: [null, null, () => board.move(1, 0.25)],
  1: ["1 … 9", "show or hide a run", null],
  t: ["t", "dark or light", () => $("theme").click()],
  f: ["f", "find a curve", () => $("chart-filter").focus()],
  "/": ["/", "filter events", () => $("name-filter").focus()],
  e: ["e", "hold the events, or go on", () => $("pause-events").click()],
  "?": ["?", "this list", () => $("keys-dialog").showModal()],
  Enter: ["Enter", "make the chart in focus larger", null],
  Escape: ["Esc", "leave a field", null],
};

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  on("run", "change", () => ((page.chosen = $("run").value), (page.isFollowing = Boolean(chosen()?.isLive)), (page.stateOf = ""), poll()));
  on("runs", "click", (event) => event.target.closest("button") && toggle(event.target.closest("button").dataset.toggles));
  on("keys", "click", () => $("keys-dialog").showModal());
  on("keys-close", "click", () => $("keys-dialog").close());
  on("freeze", "click", () => freeze(!page.isFrozen));
  on("theme", "click", () => { const theme = isDark() ? "light" : "dark"; remember("theme", theme); setTheme(theme); });
  on("chart-filter", "input", () => ((board.filter = $("chart-filter").value), arrange(), board.refresh()));
  on("x", "change", () => (remember("axis", $("x").value), board.setAxis($("x").value)));
  on("window", "change", () => ((board.zoomed = null), (board.window = Number($("window").value)), showRange(), board.refresh()));
  on("smoothing", "input", () => setSmoothing($("smoothing").value));
  on("log", "click", () => board.setLog(flip($("log"))));
  on("outliers", "click", () => ((board.clipsOutliers = flip($("outliers"))), board.redraw()));
  on("reset", "click", () => board.zoom(null));
  on("detail", "change", () => (events.clear(), follow(true)));
  on("pause-events", "click", () => events.hold(flip($("pause-events")) || page.isFrozen));
  on("clear-events", "click", () => events.clear());
  listenToKeys(KEYS, (digit) => idsOf(page.runs)[digit - 1] && toggle(idsOf(page.runs)[digit - 1]), $("key-list"));
  document.addEventListener("visibilitychange", () => (document.hidden ? stream.close() : (follow(false), poll())));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => board.repaint());
  setInterval(() => !document.hidden && !page.isFrozen && show(), 1000);
}

takeToken();
setTheme(remembered("theme") ?? "");
if ([...$("x").options].some((option) => option.value === remembered("axis"))) $("x").value = board.axis = remembered("axis");
listen();
showRange();
follow(true);
poll();
