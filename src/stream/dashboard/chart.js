/** One card of the grid: some curves, drawn by uPlot. */

import { element, isNumber, placesOf, writers } from "./format.js";
import { labelOf } from "./grouping.js";
import { binarySplits, linearSplits, logSplits, middle, padded, smooth } from "./scales.js";

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [1, 4], [12, 4], [6, 2, 2, 2]];
const BINARY = Array.from({ length: 50 }, (_, i) => 2 ** i);
const MOST_NAMES = 12, TOLD = 12;

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const colour = (index) => style(`--run-${index % 10}`);

export class Chart {
  #plot = null;
  #shape = "";
  #curves = [];
  #middle = null;
  isLog = false;
  isWide = false;

  /** `board`: what all charts share: axis, range, extent, smoothing, clipsOutliers, runs, zoom(range), hovered, dragged. */
  constructor(group, board) {
    this.group = group;
    this.board = board;
    this.title = element("h3", { text: group.title, title: group.title });
    this.legend = element("div", { class: "legend" });
    this.logButton = element("button", { type: "button", text: "log", "aria-pressed": "false", title: "Logarithmic axis of this chart" });
    this.wideButton = element("button", { type: "button", text: "⤢", "aria-pressed": "false", title: "Larger (Enter)", "aria-label": `Larger: ${group.title}` });
    this.body = element("div", { class: "plot" });
    this.note = element("p", { class: "note" });
    this.tip = element("div", { class: "tip" });
    this.card = element("article", { class: "card", tabindex: "0", "aria-label": group.title, children: [
      element("header", { children: [this.title, element("span", { class: "buttons", children: [this.logButton, this.wideButton] })] }), this.legend, this.body, this.note] });
    this.logButton.addEventListener("click", () => this.setLog(!this.isLog));
    this.wideButton.addEventListener("click", () => this.setWide(!this.isWide));
    this.card.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target === this.card) this.setWide(!this.isWide);
    });
    this.card.chart = this;
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(this.body);
  }

  get names() {
    return this.showsAll ? this.group.names : this.group.names.slice(0, MOST_NAMES);
  }
  setNames(group) {
    this.group = group;
  }
  setLog(isLog) {
    this.isLog = isLog;
    this.logButton.setAttribute("aria-pressed", String(isLog));
    this.draw();
  }
  setWide(isWide) {
    this.isWide = isWide;
    this.card.classList.toggle("wide", isWide);
    this.wideButton.setAttribute("aria-pressed", String(isWide));
  }
  /** Draws anew with other colours. */
  repaint() {
    this.#shape = "";
    this.draw();
  }
  remove() {
    this.resizing.disconnect();
    this.#plot?.destroy();
    this.card.remove();
  }

  update(curves) {
    this.#curves = curves;
    this.draw();
  }

  /** How a curve looks: colour tells runs apart, dashes ranks; where there is one run, colour tells names apart. */
  #look(curve) {
    const { runs } = this.board, run = runs.find((one) => one.key === `${curve.run}:${curve.rank}`);
    const at = this.names.indexOf(curve.name);
    const isOneRun = new Set(runs.filter((one) => one.isShown).map((one) => one.run)).size < 2;
    return { stroke: colour(isOneRun ? at : (run?.colour ?? 0)), dash: DASHES[(run?.dash ?? 0) % DASHES.length], width: !isOneRun && at > 0 ? 2.25 : 1.5, run, isOneRun, at };
  }

  #isDrawnLog() {
    return this.isLog && this.#curves.some((curve) => curve.y.some((y) => y > 0));
  }

  draw() {
    const { board } = this, isLog = this.#isDrawnLog();
    const curves = this.#curves.filter((curve) => curve.x.length);
    const [from, to] = board.range ?? board.extent ?? [0, 0], span = to - from;
    const isSmooth = board.smoothing > 0 && !this.group.isExact && curves.some((curve) => curve.x.length > 2);
    const series = [{}], tables = [];
    for (const curve of curves) {
      const look = this.#look(curve), y = isLog ? curve.y.map((value) => (value > 0 ? value : null)) : curve.y;
      const few = curve.x.length * curves.length <= 600 && curve.x.length <= 60;
      const label = this.#labelOf(curve, look);
      const points = { show: few, size: 5, fill: look.stroke, stroke: look.stroke };
      if (isSmooth) series.push({ stroke: look.stroke + "44", width: 1, points: { show: false }, isRaw: true });
      if (isSmooth) tables.push([curve.x, y]);
      series.push({ stroke: look.stroke + (curves.length > 12 ? "b0" : ""), width: isSmooth ? 2 : look.width * (curve.x.length > 300 ? 0.7 : 1), dash: look.dash, points, label });
      tables.push([curve.x, isSmooth ? smooth(curve.x, y, board.smoothing * span) : y]);
    }
    this.#middle = board.clipsOutliers ? middle(tables.flatMap((table) => table[1])) : null;
    this.#tell(curves, isLog);
    const shape = JSON.stringify([isLog, board.axis, series.map(({ stroke, width, dash, label, points }) => [stroke, width, dash, label, points?.show])]);
    const data = tables.length ? uPlot.join(tables) : [[], []];
    if (shape !== this.#shape || !this.#plot) this.#build(shape, series, data, isLog);
    else this.#plot.setData(data);
  }

  #labelOf(curve, look) {
    const name = labelOf(curve.name, this.group), of = look.run?.label ?? curve.run;
    const isOneRank = new Set(this.board.runs.filter((one) => one.isShown && one.run === curve.run).map((one) => one.rank)).size < 2;
    return [look.isOneRun ? "" : of, this.names.length > 1 || look.isOneRun ? name : "", isOneRank ? "" : `rank ${curve.rank}`].filter(Boolean).join(" · ");
  }

  #tell(curves, isLog) {
    const write = writers[this.group.unit], isOneRun = new Set(curves.map((curve) => curve.run)).size < 2;
    const items = this.names.slice(0, TOLD).flatMap((name, at) => {
      const curve = curves.find((one) => one.name === name);
      if (!curve) return [];
      const mark = element("i", { class: "mark" });
      mark.style.background = isOneRun ? colour(at) : "currentColor";
      if (!isOneRun && at > 0) mark.classList.add("thick");
      return [element("span", { class: "item", title: name, children: [mark, ...(this.group.names.length > 1 || this.group.title !== labelOf(name, this.group) ? [element("span", { class: "name", text: labelOf(name, this.group) })] : []), element("b", { text: write(curve.y.findLast(isNumber)) })] })];
    });
    const left = this.group.names.length - this.names.length;
    if (left > 0) {
      const more = element("button", { type: "button", class: "more", text: `+ ${left} more` });
      more.addEventListener("click", () => ((this.showsAll = true), this.board.refresh()));
      items.push(more);
    }
    this.legend.replaceChildren(...items);
    const told = [this.isLog && !isLog && curves.length ? "no positive value for a logarithmic axis" : "", curves.length ? "" : "nothing in this range"].filter(Boolean).join("; ");
    this.note.textContent = told;
    this.card.setAttribute("aria-label", `${this.group.title}: ${items.map((item) => item.textContent).join(", ")}`);
  }

  #size() {
    return { width: Math.max(this.body.clientWidth, 120), height: Math.max(this.body.clientHeight, 80) };
  }
  #resize() {
    const size = this.#size();
    if (this.#plot && (this.#plot.width !== size.width || this.#plot.height !== size.height)) this.#plot.setSize(size);
  }

  #build(shape, series, data, isLog) {
    this.#shape = shape;
    this.#plot?.destroy();
    const { board } = this, write = writers[this.group.unit];
    const axis = { stroke: style("--muted"), grid: { stroke: style("--grid"), width: 1 }, ticks: { show: false }, font: `11px ${style("--sans")}` };
    const ofX = { step: writers.quantity, samples: writers.quantity, seconds: writers.duration, epoch: writers.number }[board.axis];
    const measure = (u, values) => Math.max(30, 8 + 6.4 * Math.max(0, ...(values ?? []).map((value) => (value ?? "").length)));
    this.#plot = new uPlot({
      ...this.#size(), series, pxAlign: 0, padding: [8, 10, 0, 0], legend: { show: false },
      scales: {
        x: { time: false, range: () => board.range ?? board.extent ?? [0, 1] },
        y: { distr: isLog ? 3 : 1, range: (u, low, high) => padded(...(this.#middle ?? [low, high]), isLog) },
      },
      axes: [{ ...axis, size: 24, space: 60, gap: 4, values: (u, values) => placesOf(values, ofX) },
             { ...axis, size: measure, space: 28, gap: 4, splits: (u, i, low, high, step) => (!isLog ? linearSplits : this.group.unit === "bytes" ? binarySplits : logSplits)(low, high, step),
               ...(isLog ? { filter: (u, splits) => splits } : this.group.unit === "bytes" ? { incrs: BINARY } : {}), values: (u, values) => placesOf(values, write) }],
      cursor: {
        sync: { key: "torchbus", setSeries: false }, drag: { x: true, y: false, setScale: false, dist: 4 }, focus: { prox: 24 }, points: { size: (u, i) => (u.series[i].isRaw ? 0 : 7) },
        bind: { dblclick: () => () => board.zoom(null), mousedown: (u, target, handle) => (event) => ((board.dragged = this), handle(event)) },
      },
      focus: { alpha: 0.25 },
      hooks: { setCursor: [(u) => this.#point(u)], setSelect: [(u) => this.#select(u)] },
    }, data, this.body);
    this.#plot.over.append(this.tip);
    this.#plot.over.addEventListener("pointerenter", () => (board.hovered = this));
    this.#plot.over.addEventListener("pointerleave", () => (board.hovered === this && (board.hovered = null), (this.tip.hidden = true)));
    this.tip.hidden = true;
  }

  #select(u) {
    const { left, width } = u.select;
    if (width === 0) return;
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (width < 4 || this.board.dragged !== this) return;
    this.board.dragged = null;
    this.board.zoom([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
  }

  /** The values next to the cursor; those that are nearest to it come first where there are many. */
  #point(u) {
    const { left, top } = u.cursor;
    this.tip.hidden = this.board.hovered !== this || left < 0;
    if (this.tip.hidden) return;
    const x = u.posToVal(left, "x"), write = writers[this.group.unit], rows = [];
    u.series.forEach((series, i) => {
      const near = i && !series.isRaw ? this.#nearest(u.data[0], u.data[i], x, u) : null;
      if (near) rows.push({ series, value: near.y, x: near.x, distance: Math.abs(u.valToPos(near.y, "y") - top) });
    });
    if (rows.length === 0) return (this.tip.hidden = true);
    const shown = [...rows].sort((a, b) => a.distance - b.distance).slice(0, 8).sort((a, b) => b.value - a.value);
    const ofX = { step: (v) => `step ${writers.number(Math.round(v))}`, samples: (v) => `${writers.quantity(v)} samples`, seconds: writers.duration, epoch: (v) => `epoch ${writers.number(v)}` }[this.board.axis];
    const line = ({ series, value }) => {
      const mark = element("i", { class: "mark" });
      mark.style.background = series.stroke();
      return element("div", { children: [mark, element("span", { text: series.label }), element("b", { text: write(value) })] });
    };
    this.tip.replaceChildren(element("div", { class: "x", text: ofX(rows.reduce((best, row) => (row.distance < best.distance ? row : best)).x) }), ...shown.map(line),
                             ...(rows.length > shown.length ? [element("div", { class: "x", text: `and ${rows.length - shown.length} more` })] : []));
    const isRight = left > u.over.clientWidth / 2;
    this.tip.style.left = isRight ? "auto" : `${left + 14}px`;
    this.tip.style.right = isRight ? `${u.over.clientWidth - left + 14}px` : "auto";
    this.tip.style.top = `${Math.max(0, Math.min(top - 12, u.over.clientHeight - this.tip.offsetHeight))}px`;
  }

  #nearest(xs, ys, x, u) {
    let low = 0, high = xs.length;
    while (low < high) {
      const at = (low + high) >> 1;
      if (xs[at] < x) low = at + 1;
      else high = at;
    }
    let [left, right] = [low - 1, low];
    while (left >= 0 && !isNumber(ys[left])) left--;
    while (right < xs.length && !isNumber(ys[right])) right++;
    const at = left < 0 ? right : right >= xs.length || x - xs[left] < xs[right] - x ? left : right;
    return at >= 0 && at < xs.length && Math.abs(u.valToPos(xs[at], "x") - u.valToPos(x, "x")) < 40 ? { x: xs[at], y: ys[at] } : null;
  }
}
