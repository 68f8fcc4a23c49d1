/** What a chart does to its values: averages, and the ends and places of its axes. */

import { isNumber } from "./format.js";

/** An average of what lies around each value, with weights that fall with the distance along x. Values that are null are passed over. */
export function smooth(xs, ys, scale) {
  const pass = (order) => {
    const sums = new Float64Array(ys.length), weights = new Float64Array(ys.length);
    let sum = 0, weight = 0, before = null;
    for (const i of order) {
      if (!isNumber(ys[i])) continue;
      const kept = before === null || !(scale > 0) ? 0 : Math.exp(-Math.abs(before - xs[i]) / scale);
      before = xs[i];
      sums[i] = sum = sum * kept + ys[i];
      weights[i] = weight = weight * kept + 1;
    }
    return [sums, weights];
  };
  const order = ys.map((_, i) => i), [behind, ahead] = [pass(order), pass(order.toReversed())];
  return ys.map((y, i) => (isNumber(y) ? (behind[0][i] + ahead[0][i] - y) / (behind[1][i] + ahead[1][i] - 1) : y));
}

/** Places of a logarithmic axis: 1, 2 and 5 of each decade, decades alone where there are many, as a linear axis within one. */
export function logSplits(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), every = Math.ceil((last - first) / 8);
  const digits = last - first > 3 ? [1] : [1, 2, 5], places = [];
  for (let power = first; power <= last; power++) if ((power - first) % every === 0) places.push(...digits.map((digit) => Number(`${digit}e${power}`)));
  const within = places.filter((place) => place >= low && place <= high);
  if (within.length > 2) return within;
  const rough = (high - low) / 4, step = [1, 2, 5, 10].map((digit) => digit * 10 ** Math.floor(Math.log10(rough))).find((one) => one >= rough);
  return Array.from({ length: 6 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((place) => place <= high);
}

/** The same of bytes: powers of 2, or multiples of one. */
export function binarySplits(low, high) {
  const first = Math.ceil(Math.log2(low)), last = Math.floor(Math.log2(high)), every = Math.ceil((last - first + 1) / 6);
  if (last - first >= 2) return Array.from({ length: Math.floor((last - first) / every) + 1 }, (_, i) => 2 ** (first + i * every));
  const step = 2 ** Math.ceil(Math.log2((high - low) / 4));
  return Array.from({ length: 6 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((place) => place <= high);
}

/** Of a linear axis. uPlot's own takes 0.0999999 for a badly rounded 0.1, and finds no place between values that are so near. */
export function linearSplits(low, high, step) {
  const first = Math.ceil(low / step - 1e-9), count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(0, Math.min(count, 100)) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Values that are neither among the least nor the most 1 %. */
export function middle(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  return sorted.length < 20 ? null : [sorted[Math.floor(sorted.length * 0.01)], sorted[Math.ceil(sorted.length * 0.99) - 1]];
}

/** Ends of an axis that holds these values. */
export function padded(low, high, isLog) {
  if (!isNumber(low) || !isNumber(high)) return isLog ? [0.1, 1] : [0, 1];
  if (isLog) return [low / (high / low) ** 0.05 / (low === high ? 1.5 : 1), high * (high / low) ** 0.05 * (low === high ? 1.5 : 1)];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}
