// Free space over time, and where it leads.

import { el, svg } from './dom.js';
import { bytes, count, date, span } from './format.js';
import { now } from './state.js';

const WIDTH = 600;
const DAY_MS = 86400000;
const SOON_DAYS = 7;
const AHEAD_AT_MOST_DAYS = 90;

/** A chart of `disk`; `height` in units of which its width has 600. */
export function spaceChart(disk, height) {
  const history = disk.history.map(({ at, free_bytes }) => ({ at: Date.parse(at), free: free_bytes })).filter(({ at }) => at);
  if (history.length < 2) return null;
  const begin = history[0].at;
  const last = history.at(-1);
  const ahead = forecast(disk, last, last.at - begin);
  const end = ahead?.at ?? last.at;
  const top = Math.max(...history.map(({ free }) => free)) * 1.08 || 1;
  const x = (at) => (((at - begin) / (end - begin || 1)) * WIDTH).toFixed(1);
  const y = (free) => (height - (free / top) * height).toFixed(1);
  const line = history.map(({ at, free }) => `${x(at)} ${y(free)}`).join('L');
  return svg('svg', { viewBox: `0 0 ${WIDTH} ${height}`, class: 'chart', preserveAspectRatio: 'none', role: 'img', 'aria-label': told(disk) },
    svg('path', { class: 'chart-area', d: `M${x(begin)} ${height}L${line}L${x(last.at)} ${height}z` }),
    svg('path', { class: 'chart-line', d: `M${line}` }),
    ahead ? svg('path', { class: 'chart-ahead', d: `M${x(last.at)} ${y(last.free)}L${x(ahead.at)} ${y(ahead.free)}` }) : null,
    svg('path', { class: 'chart-ground', d: `M0 ${height - 0.5}H${WIDTH}` }));
}

/** Where the line leads, at most as far as it has come. */
function forecast(disk, last, known) {
  if (disk.full_in_days === null || disk.full_in_days === undefined) return null;
  const far = Math.min(disk.full_in_days * DAY_MS, Math.max(known, DAY_MS), AHEAD_AT_MOST_DAYS * DAY_MS);
  const left = 1 - far / (disk.full_in_days * DAY_MS || 1);
  return { at: last.at + far, free: Math.max(0, disk.free_bytes * left) };
}

export function isFullSoon(disk) {
  return disk.full_in_days !== null && disk.full_in_days !== undefined && disk.full_in_days < SOON_DAYS;
}

/** What stands below a chart: where it begins, where it is now, where it leads. */
export function chartFoot(disk) {
  const history = disk.history.filter(({ at }) => Date.parse(at));
  if (history.length < 2) return null;
  const [first, last] = [history[0], history.at(-1)];
  const ahead = forecast(disk, { at: Date.parse(last.at) }, Date.parse(last.at) - Date.parse(first.at));
  const place = (at, free, word = '') => el('span', {}, `${date(at)}${word}: ${bytes(free)}`);
  return el('figcaption', {}, place(first.at, first.free_bytes), place(last.at, last.free_bytes), ahead ? place(ahead.at, ahead.free, ', if it goes on') : null);
}

/** When it is full, in words. */
export function forecastWords(disk) {
  if (disk.history.length < 2) return 'no forecast yet';
  if (disk.full_in_days === null || disk.full_in_days === undefined) return 'not filling up';
  const days = disk.full_in_days;
  if (days < 2) return `full in ${span(days * 86400)}`;
  return `full in ${count(Math.floor(days), 'day')}, ${date(now() + days * DAY_MS)}`;
}

function told(disk) {
  return `${bytes(disk.free_bytes)} of ${bytes(disk.total_bytes)} free; ${forecastWords(disk)}`;
}
