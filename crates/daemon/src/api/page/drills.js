// Drills: what was brought back, how long it took, what was to be seen.

import { el } from './dom.js';
import { capital, measured } from './format.js';
import { openDialog } from './dialog.js';
import { icon } from './icons.js';
import { firstOf, heading, machineLink, nothing, passed, shown, when, whenInFull } from './parts.js';
import { redraw, route, setQuery, state } from './state.js';

const CARDS_AT_FIRST = 24;
const WAYS = { resume: 'went on from memory', cold: 'booted from its disks' };
const is = { all: false };

export default {
  title: () => 'Drills',
  parts: ({ query }) => ({ drills: query.machine ? `/drills?${new URLSearchParams({ machine: query.machine })}` : '/drills' }),
  slow: ['drills'],
  draw({ drills }, { query }) {
    return [
      heading('Drills', filters(query)),
      shown(drills, ({ drills: list }) => cards(list, query)),
    ];
  },
};

function filters({ machine = '', failed }) {
  const names = (state.overview?.machines ?? []).map((row) => row.name);
  return el('div', { class: 'filters' },
    el('button', { type: 'button', class: 'chip', 'aria-pressed': String(Boolean(failed)), onclick: () => setQuery({ failed: route().query.failed ? null : '1' }) }, 'failed only'),
    el('select', { 'aria-label': 'Machine', value: machine, onchange: (event) => chosen({ machine: event.target.value }) },
      el('option', { value: '' }, 'all machines'), names.map((one) => el('option', { value: one }, one))));
}

function chosen(change) {
  setQuery(change);
  dispatchEvent(new HashChangeEvent('hashchange'));
}

function cards(list, { failed }) {
  const drills = list.filter((drill) => !failed || !drill.passed).sort((a, b) => (a.at < b.at ? 1 : -1));
  if (!drills.length) return nothing(failed ? 'No drill failed.' : 'No drill was held yet.', failed ? null : 'A backup that was never brought back is a hope.');
  return firstOf(drills, is.all ? Infinity : CARDS_AT_FIRST, (some) => el('div', { class: 'drills' }, some.map(card)), () => { is.all = true; redraw(); });
}

function card(drill) {
  return el('article', { class: `card drill is-${drill.passed ? 'protected' : 'unprotected'}`, 'data-drill': drill.id, 'data-passed': String(drill.passed), 'data-key': drill.id },
    picture(drill),
    el('div', { class: 'drill-body' },
      el('div', { class: 'drill-head' }, passed(drill.passed), machineLink(drill.machine), el('span', { class: 'faint' }, when(drill.at))),
      el('p', { class: 'drill-target', title: drill.target }, `${drill.what === 'point' ? 'Point' : 'Snapshot'} ${drill.target}`),
      el('ul', { class: 'ways' }, drill.ways.map(way)),
      drill.page ? el('a', { href: drill.page, target: '_blank', rel: 'noopener', class: 'more-link' }, 'The evidence in full') : null));
}

function picture(drill) {
  if (!drill.screenshot) return el('div', { class: 'screen none' }, icon('disk'), 'no screenshot');
  return el('button', { type: 'button', class: 'screen', 'data-row': true, 'data-action': 'screenshot', 'aria-label': `Screenshot of ${drill.machine}, larger`, onclick: () => enlarge(drill) },
    el('img', { src: drill.screenshot, alt: '', loading: 'lazy', decoding: 'async' }));
}

function enlarge(drill) {
  openDialog('screenshot', `${drill.machine}, ${drill.target}`, () => [
    el('img', { class: 'screen-large', src: drill.screenshot, alt: `What ${drill.machine} showed at the end of its drill` }),
    el('p', {}, passed(drill.passed), ' ', whenInFull(drill.at)),
  ], { wide: true });
}

function way(way) {
  const times = [['CPUs', way.vcpus_ms], ['agent', way.agent_ms], ['probes', way.all_ms]].filter(([, ms]) => ms != null);
  return el('li', { class: way.passed ? '' : 'bad' },
    el('span', { class: 'way-name' }, icon(way.passed ? 'drills' : 'crashed'), capital(WAYS[way.way] ?? way.way)),
    times.length ? el('span', { class: 'way-time' }, times.map(([what, ms]) => `${what} ${measured(ms)}`).join(' · ')) : null,
    way.why ? el('span', { class: 'way-why' }, way.why) : null);
}
