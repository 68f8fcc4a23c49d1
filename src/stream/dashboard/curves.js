/** The grid of charts: asks for the curves of those in sight, and no oftener than they change. */

import { Chart } from "./chart.js";
import { groupsOf, matches } from "./grouping.js";
import { get } from "./stream.js";

const POINTS_IN_ALL = 60_000, MOST_POINTS = 1000, LONGEST_QUERY = 3000, MOST_NAMES = 60;  // of an answer; the server has limits of its own above these

/** At most `most` names in a query, and no query longer than a head of HTTP may be. */
const batchesOf = (names, most) => names.reduce((batches, name) => {
  const length = encodeURIComponent(name).length + 3, last = batches.at(-1);
  if (last && last.length + length < LONGEST_QUERY && last.names.length < most) (last.names.push(name), (last.length += length));
  else batches.push({ names: [name], length });
  return batches;
}, []).map(({ names }) => names);

export class Board {
  axis = "step";
  zoomed = null;         ///< [from, to] of the axis
  window = 1;            ///< newest share of the whole, where it is not zoomed
  extent = null;         ///< of all curves
  smoothing = 0;         ///< share of the range over which curves are averaged
  clipsOutliers = false;
  runs = [];             ///< {key, run, rank, label, colour, dash, isShown, isLive, sequence, names, position}
  filter = "";
  isLog = false;
  hovered = null;
  dragged = null;
  #charts = new Map();
  #seen = new Set();
  #known = new Map();    ///< by run and name: {curve, asked, sequence}
  #asked = "";
  #pending = null;
  #again = false;

  /** `onZoom()` after the range was changed; `onFailure(error)` where curves could not be had. */
  constructor(grid, { onZoom, onFailure }) {
    this.grid = grid;
    this.onZoom = onZoom;
    this.onFailure = onFailure;
    this.sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) this.#seen[isIntersecting ? "add" : "delete"](target.chart);
      if (entries.some((entry) => entry.isIntersecting)) this.refresh();
    }, { rootMargin: "200px" });
  }

  get range() {
    if (this.zoomed) return this.zoomed;
    if (this.window === 1 || !this.extent) return null;
    return [this.extent[1] - (this.extent[1] - this.extent[0]) * this.window, this.extent[1]];
  }
  zoom(range) {
    this.zoomed = range;
    if (!range) this.window = 1;
    this.onZoom();
    this.redraw();
    this.refresh();
  }
  /** Of the range that is seen: `factor` of its length, moved by a share of it. */
  move(factor, shift) {
    const [from, to] = this.range ?? this.extent ?? [0, 1], whole = this.extent ?? [0, 1];
    const half = ((to - from) * factor) / 2, centre = (from + to) / 2 + (to - from) * shift;
    const moved = [Math.max(whole[0], centre - half), Math.min(whole[1], centre + half)];
    if (moved[1] - moved[0] > (whole[1] - whole[0]) * 1e-6) this.zoom(moved[0] <= whole[0] && moved[1] >= whole[1] ? null : moved);
  }
  setAxis(axis) {
    this.axis = axis;
    this.zoomed = this.extent = null;
    this.#known.clear();
    this.onZoom();
    this.refresh();
  }
  setLog(isLog) {
    this.isLog = isLog;
    for (const chart of this.#charts.values()) chart.setLog(isLog);
  }
  redraw() {
    for (const chart of this.#seen) chart.draw();
  }
  repaint() {
    for (const chart of this.#charts.values()) chart.repaint();
  }

  /** What there is to be drawn. */
  arrange(runs) {
    this.runs = runs;
    const names = new Set(runs.filter((run) => run.isShown).flatMap((run) => run.names));
    const groups = groupsOf(names).filter((group) => matches(`${group.title} ${group.names.join(" ")}`, this.filter));
    const kept = new Set(groups.map((group) => group.key));
    for (const [key, chart] of this.#charts) if (!kept.has(key)) this.#drop(key, chart);
    groups.forEach((group, at) => {
      if (!this.#charts.has(group.key)) this.#add(group);
      const chart = this.#charts.get(group.key);
      chart.setNames(group);
      if (this.grid.children[at] !== chart.card) this.grid.insertBefore(chart.card, this.grid.children[at] ?? null);
    });
    return groups.length;
  }
  #add(group) {
    const chart = new Chart(group, this);
    if (this.isLog) chart.setLog(true);
    this.#charts.set(group.key, chart);
    this.sight.observe(chart.card);
  }
  #drop(key, chart) {
    this.sight.unobserve(chart.card);
    this.#seen.delete(chart);
    this.#charts.delete(key);
    chart.remove();
  }

  /** Asks for what has changed, and draws. One at a time; what is asked for meanwhile follows. */
  async refresh() {
    if (this.#pending) return void (this.#again = true);
    this.#pending = this.#fetch();
    try {
      await this.#pending;
    } catch (error) {
      this.onFailure(error);
    }
    this.#pending = null;
    if (this.#again) (this.#again = false, setTimeout(() => this.refresh(), 100));
  }

  async #fetch() {
    const charts = [...this.#seen], runs = this.runs.filter((run) => run.isShown);
    const names = [...new Set(charts.flatMap((chart) => chart.names))];
    const points = Math.max(100, Math.min(MOST_POINTS, Math.floor(POINTS_IN_ALL / Math.max(1, names.length * runs.length))));
    const [from, to] = this.range ?? [];
    const asked = JSON.stringify([this.axis, points, from, to]);
    if (asked !== this.#asked) for (const known of this.#known.values()) known.sequence = -1;
    this.#asked = asked;
    for (const [missing, its] of this.#missing(names, runs)) {
      for (const some of batchesOf(missing, Math.max(1, Math.min(MOST_NAMES, Math.floor(POINTS_IN_ALL / (points * its.length)))))) {
        const isAll = its.length === this.runs.length;
        const answer = await get("/curves", { names: some.join(","), x: this.axis, points, from, to: this.zoomed ? to : undefined, runs: isAll ? undefined : its.map((run) => run.key).join(",") });
        if (answer.x !== this.axis) return;
        for (const run of its) for (const name of some) this.#known.set(`${run.key}\n${name}`, { sequence: run.sequence, curve: null });
        for (const curve of answer.curves) {
          const known = this.#known.get(`${curve.run}:${curve.rank}\n${curve.name}`);
          if (known) known.curve = inOrder(curve);
        }
      }
    }
    this.#extend(runs);
    for (const chart of charts) chart.update(chart.names.flatMap((name) => runs.map((run) => this.#known.get(`${run.key}\n${name}`)?.curve)).filter(Boolean));
  }

  /** Names to ask for, with the runs to ask for them: runs that want the same are asked for together. */
  #missing(names, runs) {
    const wanted = new Map();
    for (const run of runs) {
      const has = new Set(run.names);
      const missing = names.filter((name) => has.has(name) && (this.#known.get(`${run.key}\n${name}`)?.sequence ?? -2) !== run.sequence);
      const key = JSON.stringify(missing);
      if (missing.length) wanted.set(key, [missing, [...(wanted.get(key)?.[1] ?? []), run]]);
    }
    return wanted.values();
  }

  #extend(runs) {
    if (this.zoomed) return;
    const shown = new Set(runs.map((run) => run.key));
    let low = Infinity, high = -Infinity;
    for (const [key, { curve }] of this.#known) {
      if (!curve?.x.length || !shown.has(key.slice(0, key.indexOf("\n")))) continue;
      low = Math.min(low, curve.x[0]);
      high = Math.max(high, curve.x.at(-1));
    }
    if (this.window < 1 && this.extent) [low, high] = [this.extent[0], Math.max(high, this.extent[1])];
    if (low <= high) this.extent = low < high ? [low, high] : [low - 0.5, high + 0.5];
  }
}

/** A run that was rolled back may tell of a step again. */
function inOrder(curve) {
  if (curve.x.every((x, i) => i === 0 || curve.x[i - 1] <= x)) return curve;
  const order = curve.x.map((_, i) => i).sort((a, b) => curve.x[a] - curve.x[b]);
  return { ...curve, x: order.map((i) => curve.x[i]), y: order.map((i) => curve.y[i]) };
}
