/** Numbers, times and sizes as people read them. */

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export const NOTHING = "–";
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const count = (value) => (isNumber(value) ? grouped.format(value) : NOTHING);

/** Four significant digits. */
export function number(value) {
  if (!isNumber(value)) return typeof value === "string" ? value : NOTHING;
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (Number.isInteger(value) && size < 1e6) return grouped.format(value);
  if (size >= 1e6 || size < 1e-3) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return String(+value.toPrecision(4));
}

function scaled(value, base, prefixes, unit, digits = 3) {
  if (!isNumber(value)) return NOTHING;
  let size = value, at = 0;
  while (Math.abs(size) >= base * 0.9995 && at < prefixes.length - 1) (size /= base), at++;
  return `${+size.toPrecision(digits)}${prefixes[at] || unit ? "\u00a0" : ""}${prefixes[at]}${unit}`.trim();
}
export const quantity = (value) => scaled(value, 1000, ["", "k", "M", "G", "T"], "").replace("\u00a0", "");
export const bytes = (value, digits) => scaled(value, 1024, ["", "Ki", "Mi", "Gi", "Ti"], "B", digits);
export const share = (value) => (isNumber(value) ? `${+(value * 100).toPrecision(3)} %` : NOTHING);

/** Seconds: 0.35 s, 42 s, 3:07, 2:03:07, 4 d 2 h. */
export function duration(seconds) {
  if (!isNumber(seconds)) return NOTHING;
  if (seconds !== 0 && Math.abs(seconds) < 1e-3) return `${+(seconds * 1e6).toPrecision(3)} µs`;
  if (seconds !== 0 && Math.abs(seconds) < 1) return `${+(seconds * 1e3).toPrecision(3)} ms`;
  if (Math.abs(seconds) < 60) return `${+seconds.toPrecision(3)} s`;
  const all = Math.round(seconds), two = (part) => String(part).padStart(2, "0");
  const [d, h, m, s] = [Math.floor(all / 86400), Math.floor(all / 3600) % 24, Math.floor(all / 60) % 60, all % 60];
  if (d > 0) return `${d} d ${h} h`;
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export const clock = (iso) => {
  const time = new Date(iso);
  return Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString("en-GB") + "." + String(time.getMilliseconds()).padStart(3, "0");
};

/** How values of a chart are written: at its axis and in its legend. */
export const writers = { number, bytes, share, quantity, duration };

/** Places of an axis, with as many digits as it takes to tell them apart. */
export function placesOf(values, write) {
  const texts = values.map((value) => (value === null ? "" : write(value)));
  const areSame = texts.some((text, i) => i && text && text === texts[i - 1]);
  if (!areSame) return texts;
  for (let digits = 5; digits < 16; digits++) {
    const longer = values.map((value) => (value === null ? "" : write === bytes ? bytes(value, digits) : write === share ? `${+(value * 100).toPrecision(digits)} %` : String(+value.toPrecision(digits))));
    if (longer.every((text, i) => !i || !text || text !== longer[i - 1])) return longer;
  }
  return texts;
}

/** An element with its text and attributes; text is never taken for HTML. */
export function element(tag, { text, children = [], ...attributes } = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}
