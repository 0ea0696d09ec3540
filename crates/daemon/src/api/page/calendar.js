// Days: what each left, and what the coming ones will.

import { el } from './dom.js';
import { count, date } from './format.js';
import { icon } from './icons.js';
import { nothing } from './parts.js';
import { now } from './state.js';

const DAYS = ['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'];
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
const DAY_MS = 86400000;

export function calendar({ past, coming }) {
  const days = new Map();
  for (const day of past) days.set(day.date, { ...day });
  for (const day of coming) days.set(day.date, { ...days.get(day.date), date: day.date, planned: day });
  const dates = [...days.keys()].sort();
  const began = dates.find((at) => isAnything(days.get(at)));
  if (!began && !coming.some(isAnything)) return nothing('Nothing was done, and nothing is planned.');
  return el('div', { class: 'calendar-box' },
    el('table', { class: 'calendar', 'aria-label': 'Past and coming days' },
      el('thead', {}, el('tr', {}, DAYS.map((day) => el('th', { scope: 'col' }, day)))),
      el('tbody', {}, weeks(dates).map((week) => el('tr', {}, week.map((one) => cell(one, days.get(one), began)))))),
    legend());
}

/** Whole weeks from the first day's until the last one's. Days of a calendar have no clock: all is reckoned in UTC. */
function weeks(dates) {
  const [first, last] = [dates[0], dates.at(-1)].map((one) => Date.parse(`${one}T00:00:00Z`));
  const weekday = (new Date(first).getUTCDay() + 6) % 7;
  const weeks = [];
  for (let at = first - weekday * DAY_MS; at <= last; at += 7 * DAY_MS) {
    weeks.push(DAYS.map((_, n) => new Date(at + n * DAY_MS).toISOString().slice(0, 10)));
  }
  return weeks;
}

const isAnything = (day) => Boolean(day.snapshots || day.points || day.failed || day.drills_failed || day.drills_passed);

/** A day without anything is a gap only after there was something. */
function cell(at, day, began) {
  const today = date(now());
  const number = Number(at.slice(8));
  const name = number === 1 ? ` ${MONTHS[Number(at.slice(5, 7)) - 1]}` : '';
  if (!day) return el('td', { class: 'day outside' }, el('span', { class: 'day-number' }, String(number)));
  const bad = day.failed || day.drills_failed;
  const kind = at > today ? 'coming' : at === today ? 'today' : 'past';
  const empty = kind === 'past' && at > began && !isAnything(day) ? ' empty' : '';
  return el('td', { class: `day ${kind}${bad ? ' bad' : ''}${empty}`, title: told(at, day, kind), 'data-date': at, 'data-day': kind },
    el('span', { class: 'day-number', 'aria-hidden': 'true' }, `${number}${name}`),
    el('span', { class: 'unseen' }, told(at, day, kind)),
    el('span', { class: 'day-marks', 'aria-hidden': 'true' }, kind === 'coming' ? planned(day.planned) : done(day)));
}

function done(day) {
  return [
    markOf('snapshot', day.snapshots), markOf('point', day.points), markOf('passed', day.drills_passed),
    markOf('failed', (day.failed ?? 0) + (day.drills_failed ?? 0)),
  ];
}

function planned(day) {
  return day ? [markOf('snapshot', day.snapshots), markOf('point', day.points), markOf('passed', day.drills)] : null;
}

const SHAPES = { passed: 'drills', failed: 'crashed' };

function markOf(kind, n) {
  if (!n) return null;
  const shape = SHAPES[kind] ? icon(SHAPES[kind]) : el('span', { class: 'day-shape' });
  return el('span', { class: `day-mark is-${kind}` }, shape, n > 1 || !SHAPES[kind] ? String(n) : null);
}

function told(at, day, kind) {
  if (kind === 'coming') return `${at}: planned ${words(day.planned ?? {}, 'nothing')}`;
  const rest = kind === 'today' && day.planned ? `; still planned ${words(day.planned, 'nothing')}` : '';
  return `${at}: ${words(day, 'nothing was made')}${rest}`;
}

function words(day, none) {
  const list = [
    day.snapshots ? count(day.snapshots, 'snapshot') : null,
    day.points ? count(day.points, 'point') : null,
    day.drills ? count(day.drills, 'drill') : null,
    day.drills_passed ? `${count(day.drills_passed, 'drill')} passed` : null,
    day.drills_failed ? `${count(day.drills_failed, 'drill')} failed` : null,
    day.failed ? `${count(day.failed, 'job')} failed` : null,
  ].filter(Boolean);
  return list.join(', ') || none;
}

function legend() {
  const one = (kind, word) => el('span', { class: `day-mark is-${kind}` }, SHAPES[kind] ? icon(SHAPES[kind]) : el('span', { class: 'day-shape' }), word);
  return el('p', { class: 'legend', 'aria-hidden': 'true' },
    one('snapshot', 'snapshots'), one('point', 'points'), one('passed', 'drill passed'), one('failed', 'failed'),
    el('span', { class: 'day-mark is-coming' }, 'hollow: planned'));
}
