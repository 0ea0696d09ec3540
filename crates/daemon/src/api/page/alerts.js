// What should not stay as it is, and what to do about it.

import { el } from './dom.js';
import { count } from './format.js';
import { verdictShape } from './icons.js';
import { heading, loading, machineLink, nothing, trouble, when } from './parts.js';
import { state } from './state.js';

const SHAPES = { critical: 'unprotected', warning: 'at-risk' };

export default {
  title: () => 'Alerts',
  draw() {
    const overview = state.overview;
    if (!overview) return state.overviewError ? trouble(state.overviewError) : loading();
    const critical = overview.alerts.filter(({ severity }) => severity === 'critical');
    const others = overview.alerts.filter(({ severity }) => severity !== 'critical');
    const told = overview.alerts.length ? `${count(critical.length, 'critical', 'critical')}, ${count(others.length, 'warning')}` : null;
    return [
      heading('Alerts', told ? el('span', { class: 'faint' }, told) : null),
      overview.alerts.length ? el('ul', { class: 'alerts' }, [...critical, ...others].map(alertCard)) : calm(),
    ];
  },
};

function calm() {
  return el('div', { class: 'nothing' }, verdictShape('protected'), el('p', {}, 'Nothing needs you.'));
}

/** An alert as a line, where there is more to see than alerts. */
export function alertLine(alert) {
  return el('a', { class: `alert-line is-${alert.severity}`, href: '#/alerts', 'data-alert': alert.id, 'data-key': alert.id },
    verdictShape(SHAPES[alert.severity]), el('span', { class: 'alert-what' }, whose(alert), alert.what), el('span', { class: 'faint' }, when(alert.since)));
}

/** The machine's name, where the words do not have it. */
const whose = ({ machine, what }) => (machine && !what.includes(machine) ? `${machine}: ` : null);

function alertCard(alert) {
  return el('li', { class: `alert is-${alert.severity}`, 'data-alert': alert.id, 'data-key': alert.id },
    verdictShape(SHAPES[alert.severity]),
    el('div', {},
      el('p', { class: 'alert-what' }, whose(alert), alert.what),
      alert.advice ? el('p', { class: 'advice' }, alert.advice) : null,
      el('p', { class: 'alert-foot' }, alert.severity, ', since ', when(alert.since), alert.machine ? [' · ', machineLink(alert.machine)] : null)));
}
