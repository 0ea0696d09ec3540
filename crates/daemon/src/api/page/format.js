// Numbers, sizes and times as a person reads them.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
const MINUTE = 60;
const HOUR = 3600;
const DAY = 86400;

export function bytes(n) {
  if (n === null || n === undefined) return '–';
  let unit = 0;
  let value = n;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** A span about as long: "45 s", "12 min", "5 h", "3 d". */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  const s = Math.round(seconds);
  if (s < 2 * MINUTE) return `${s} s`;
  if (s < 2 * HOUR) return `${Math.floor(s / MINUTE)} min`;
  if (s < 2 * DAY) return `${Math.floor(s / HOUR)} h`;
  return `${Math.floor(s / DAY)} d`;
}

/** A span in the largest unit that it is whole in, as it is promised. */
export function exactSpan(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  const [each, unit] = [[DAY, 'd'], [HOUR, 'h'], [MINUTE, 'min']].find(([each]) => seconds % each === 0) ?? [1, 's'];
  return `${seconds / each} ${unit}`;
}

/** A measured span: "340 ms", "1.2 s", "2 min 5 s". */
export function measured(ms) {
  if (ms === null || ms === undefined) return '–';
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
  return `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}

/** An instant seen from another. */
export function relative(at, now) {
  const seconds = (at - now) / 1000;
  if (Math.abs(seconds) < 5) return 'now';
  return seconds < 0 ? `${span(-seconds)} ago` : `in ${span(seconds)}`;
}

const two = (n) => String(n).padStart(2, '0');

export function date(at) {
  const d = new Date(at);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
}

export function clock(at) {
  const d = new Date(at);
  return `${two(d.getHours())}:${two(d.getMinutes())}`;
}

/** An instant in full, in the reader's own zone, which is told. */
export function absolute(at) {
  const d = new Date(at);
  if (Number.isNaN(d.getTime())) return String(at);
  const zone = -d.getTimezoneOffset();
  const offset = `${zone < 0 ? '−' : '+'}${two(Math.floor(Math.abs(zone) / 60))}:${two(Math.abs(zone) % 60)}`;
  return `${date(d)} ${clock(d)}:${two(d.getSeconds())} UTC${zone === 0 ? '' : offset}`;
}

export function count(n, one, more = `${one}s`) {
  return `${n} ${n === 1 ? one : more}`;
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
