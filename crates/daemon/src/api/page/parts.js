// Pieces that several views are made of.

import { el } from './dom.js';
import { absolute, bytes, exactSpan, measured, relative, span } from './format.js';
import { icon, verdictShape } from './icons.js';
import { hash, now } from './state.js';

export const WORDS = { protected: 'protected', 'at-risk': 'at risk', unprotected: 'unprotected' };

/** An instant as its distance from now; in full on demand. */
export function when(at, none = '–') {
  if (!at) return el('span', { class: 'faint' }, none);
  return el('time', { datetime: at, title: absolute(at) }, relative(Date.parse(at), now()));
}

/** When something comes next; what is late is due now. */
export function due(at, none = '–') {
  const node = when(at, none);
  if (at && Date.parse(at) < now()) node.textContent = 'now';
  if (at) node.dataset.due = '';
  return node;
}

/** An instant in full, and its distance. */
export function whenInFull(at) {
  return el('span', {}, absolute(at), ' ', el('span', { class: 'faint' }, '(', when(at), ')'));
}

/** Distances go on being true while nothing else changes. */
export function tickTimes(root) {
  for (const node of root.querySelectorAll('time[datetime]')) {
    const at = Date.parse(node.dateTime);
    const text = relative('due' in node.dataset ? Math.max(at, now()) : at, now());
    if (node.textContent !== text) node.textContent = text;
  }
}

export function verdict(of, big = false) {
  return el('span', { class: `verdict is-${of}${big ? ' big' : ''}` }, verdictShape(of), WORDS[of] ?? of);
}

export function machineState(of) {
  return el('span', { class: `state is-${of}` }, icon(of), of);
}

export function tag(text, kind = '') {
  return el('span', { class: `tag ${kind}`.trim() }, text);
}

export function passed(is, words = ['passed', 'failed']) {
  return el('span', { class: is ? 'verdict is-protected' : 'verdict is-unprotected' },
    verdictShape(is ? 'protected' : 'unprotected'), is ? words[0] : words[1]);
}

export function machineLink(name, query) {
  return el('a', { href: hash(['machines', name], query), class: 'name' }, name);
}

/** What is measured against what is promised. */
export function objective(of, none = 'no objective') {
  const { objective_s: promised, actual_s: actual, met } = of ?? {};
  if (promised === null || promised === undefined) {
    return el('span', { class: 'objective faint' }, actual == null ? none : `${span(actual)}, ${none}`);
  }
  const kind = met === false ? 'missed' : met === true ? 'met' : 'open';
  const word = { met: 'met', missed: 'missed', open: 'not measured' }[kind];
  const share = actual == null ? 0 : Math.min(1, actual / promised);
  const figures = actual == null ? exactSpan(promised) : `${measuredSpan(actual)} of ${exactSpan(promised)}`;
  return el('span', { class: `objective is-${kind}` },
    el('span', { class: 'objective-words' }, figures, ' ', el('span', { class: 'objective-word' }, word)),
    gauge(share));
}

/** Seconds may come with a fraction: a machine that is back in 0.4 s is not back in 0. */
function measuredSpan(seconds) {
  if (seconds === 0) return 'under 1 s';
  return seconds < 60 && !Number.isInteger(seconds) ? measured(seconds * 1000) : span(seconds);
}

function gauge(share) {
  return el('span', { class: 'gauge', 'aria-hidden': 'true' },
    el('span', { class: 'gauge-fill', style: { width: `${(share * 100).toFixed(1)}%` } }));
}

export function button(text, attributes, ...more) {
  return el('button', { type: 'button', ...attributes, class: `button ${attributes.class ?? ''}`.trim() }, ...more, text);
}

export function section(title, id, ...children) {
  return el('section', { class: 'section', 'aria-labelledby': `${id}-title`, id },
    el('h2', { id: `${id}-title`, class: 'section-title' }, title), ...children);
}

export function heading(title, ...beside) {
  return el('div', { class: 'heading' }, el('h1', { tabindex: '-1' }, title), ...beside);
}

export function nothing(what, more) {
  return el('div', { class: 'nothing' }, el('p', {}, what), more ? el('p', { class: 'faint' }, more) : null);
}

export function loading(what = 'Fetching') {
  return el('div', { class: 'loading', role: 'status' }, el('span', { class: 'loading-bar', 'aria-hidden': 'true' }), `${what}…`);
}

export function trouble(error) {
  return el('div', { class: 'trouble', role: 'alert' },
    verdictShape('at-risk'),
    el('div', {},
      el('p', {}, error.message ?? String(error)),
      error.advice ? el('p', { class: 'advice' }, error.advice) : null));
}

/** A part that may still be on its way, or have failed; what was known before stays to be seen. */
export function shown(part, draw, what) {
  // That nothing answers at all is told once, on top of the page.
  if (part.value) return [part.error && part.error.status !== 0 ? trouble(part.error) : null, draw(part.value)];
  return part.error ? trouble(part.error) : loading(what);
}

/** The first so many, and a button for the rest. */
export function firstOf(list, many, draw, showAll) {
  if (list.length <= many) return draw(list);
  return [draw(list.slice(0, many)), button(`Show all ${list.length}`, { class: 'wide', onclick: showAll, 'data-action': 'show-all' })];
}

export function facts(rows) {
  return el('dl', { class: 'facts' },
    rows.filter(Boolean).map(([name, ...value]) => el('div', {}, el('dt', {}, name), el('dd', {}, ...value))));
}

/** A table whose rows become cards where there is no room: each cell knows its heading. */
export function table(label, heads, rows, kind = '') {
  const head = el('thead', {}, el('tr', {}, heads.map((one) => el('th', { scope: 'col', class: one.class }, one.text ?? one))));
  const body = el('tbody', {}, rows.map(({ cells, ...attributes }) => el('tr', attributes,
    cells.map((cell, n) => el('td', { 'data-head': heads[n].text ?? heads[n], class: heads[n].class }, cell)))));
  return el('div', { class: `table-box ${kind}`.trim() }, el('table', { 'aria-label': label }, head, body));
}

export function size(n) {
  return el('span', { class: 'number', title: n == null ? null : `${n} bytes` }, bytes(n));
}

export function progressBar(job) {
  const { done_bytes: done, total_bytes: total } = job.progress ?? {};
  const known = done != null && total > 0;
  const share = known ? Math.min(100, (done / total) * 100) : 0;
  return el('span', {
    class: known ? 'progress' : 'progress unknown', role: 'progressbar', 'aria-label': `${job.kind} of ${job.group ?? job.machine ?? 'all'}`,
    'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuenow': known ? Math.round(share) : null,
  }, el('span', { class: 'progress-fill', style: known ? { width: `${share.toFixed(1)}%` } : {} }));
}
