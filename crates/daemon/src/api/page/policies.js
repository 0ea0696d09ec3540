// The policies as they were read, every mistake with its place and remedy.

import { el } from './dom.js';
import { count } from './format.js';
import { verdictShape } from './icons.js';
import { button, facts, heading, loading, machineLink, nothing, section, table, trouble, whenInFull } from './parts.js';
import { askPause, askReload, askResume } from './shell.js';
import { may, state } from './state.js';

export default {
  title: () => 'Policies',
  draw() {
    const overview = state.overview;
    if (!overview) return state.overviewError ? trouble(state.overviewError) : loading();
    const { policies, machines } = overview;
    return [
      heading('Policies', may('admin') ? controls(overview.paused) : null),
      standing(policies),
      policies.mistakes.length ? el('ul', { class: 'alerts' }, policies.mistakes.map(mistake)) : null,
      facts([['Read', whenInFull(policies.loaded)], ['Files', policies.files.length ? policies.files.map((file) => el('div', {}, el('code', {}, file))) : 'none']]),
      section('Machines', 'by-policy', byPolicy(machines)),
    ];
  },
};

export function controls(paused) {
  return el('div', { class: 'actions' },
    button('Reload', { 'data-action': 'reload', onclick: askReload }),
    paused ? button('Resume', { class: 'primary', 'data-action': 'resume', onclick: askResume }) : button('Pause', { 'data-action': 'pause', onclick: askPause }));
}

function standing({ usable, mistakes }) {
  const errors = mistakes.filter(({ severity }) => severity === 'error').length;
  const warnings = mistakes.length - errors;
  const kind = usable && !errors ? (warnings ? 'at-risk' : 'protected') : 'unprotected';
  const words = usable && !errors
    ? (warnings ? `They can be used; ${count(warnings, 'warning')}.` : 'Nothing is wrong.')
    : `They cannot be used: ${count(errors, 'error')}. Those read before count on.`;
  return el('p', { class: `verdict big is-${kind}` }, verdictShape(kind), words);
}

function mistake({ place, severity, what, remedy }) {
  const critical = severity === 'error';
  return el('li', { class: `alert is-${critical ? 'critical' : 'warning'}`, 'data-mistake': severity },
    verdictShape(critical ? 'unprotected' : 'at-risk'),
    el('div', {}, el('p', { class: 'alert-what' }, el('code', { class: 'place' }, place), ' ', what), remedy ? el('p', { class: 'advice' }, remedy) : null));
}

function byPolicy(machines) {
  const groups = new Map();
  for (const row of machines) groups.set(row.policy, [...(groups.get(row.policy) ?? []), row]);
  const rows = [...groups].sort(([a], [b]) => (a === null ? -1 : b === null ? 1 : a < b ? -1 : 1));
  if (!rows.length) return nothing('There are no machines yet.');
  return table('Machines by policy', ['Policy', { text: 'Machines', class: 'end' }, 'Which'], rows.map(([policy, list]) => ({
    'data-key': policy ?? '(none)',
    cells: [policy ?? el('span', { class: 'verdict is-unprotected' }, verdictShape('unprotected'), 'none'), String(list.length), which(list)],
  })));
}

function which(list) {
  const some = list.slice(0, 8);
  return el('span', { class: 'which' }, some.map((row) => [machineLink(row.name), ' ']), list.length > some.length ? `and ${list.length - some.length} more` : null);
}
