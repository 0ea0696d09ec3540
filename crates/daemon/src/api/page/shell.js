// What surrounds every view: navigation, banners, the way out, help.

import { el, morphChildren, several } from './dom.js';
import { post, send } from './api.js';
import { ask, message, openDialog } from './dialog.js';
import { clock, count } from './format.js';
import { icon, mark } from './icons.js';
import { button } from './parts.js';
import { hash, may, route, state } from './state.js';

const VIEWS = [
  { name: 'machines', title: 'Machines', key: 'm', tab: true },
  { name: 'jobs', title: 'Jobs', key: 'j', tab: true },
  { name: 'drills', title: 'Drills', key: 'd', tab: true },
  { name: 'alerts', title: 'Alerts', key: 'a', tab: true },
  { name: 'space', title: 'Space', key: 's' },
  { name: 'policies', title: 'Policies', key: 'p' },
  { name: 'approvals', title: 'Approvals', key: 'v', shown: approvalsMatter },
  { name: 'audit', title: 'Audit', key: 'l', role: 'operate' },
];

/** Whether the policies ask for approvals, or something waits for one all the same. */
function approvalsMatter() {
  const { counts, approval } = state.overview ?? {};
  return Boolean(approval?.asked_for.length || counts?.approvals);
}

/** The views of whoever is here: what they may not read, and what is of no use on this host, is not offered. */
export const views = () => VIEWS.filter((view) => (!view.role || may(view.role)) && (!view.shown || view.shown()));

const CONNECTIONS = {
  starting: ['Connecting', 'Nothing is known yet'],
  live: ['Live', 'Changes are shown as they happen'],
  polling: ['Every 5 s', 'No stream of events comes through: the page asks every five seconds'],
  away: ['No answer', 'The daemon does not answer; the page goes on asking'],
};

export function drawShell() {
  const current = state.needsLogin ? null : route().path[0] ?? 'machines';
  morphChildren(document.getElementById('top'), several(top(current)));
  morphChildren(document.getElementById('banners'), several(state.needsLogin ? [] : banners()));
  morphChildren(document.getElementById('tabs'), several(state.needsLogin ? [] : tabs(current)));
}

function top(current) {
  const brand = el('a', { href: '#/machines', class: 'brand', 'aria-label': 'Keyframe: machines' },
    mark(), el('span', { class: 'brand-name' }, 'Keyframe'), state.overview ? el('span', { class: 'brand-host' }, state.overview.host) : null);
  if (state.needsLogin) return brand;
  return [
    brand,
    el('nav', { class: 'views', 'aria-label': 'Views' }, views().map((view) => viewLink(view, current))),
    el('div', { class: 'top-end' },
      connection(),
      el('button', { type: 'button', class: 'button quiet key', 'aria-label': 'Help and keyboard shortcuts', title: 'Help (?)', 'data-action': 'help', onclick: help }, '?'),
      account()),
  ];
}

function viewLink(view, current, withIcon = false) {
  const number = badge(view.name);
  return el('a', { href: hash([view.name]), class: 'view', 'data-view': view.name, 'aria-current': view.name === current ? 'page' : null, title: `${view.title} (g ${view.key})` },
    withIcon ? icon(view.name) : null, el('span', {}, view.title), number);
}

function badge(view) {
  const counts = state.overview?.counts;
  const running = counts ? counts.jobs_running : 0;
  if (view === 'jobs' && running) return el('span', { class: 'badge', 'aria-label': `${running} running` }, running);
  if (view === 'alerts' && counts?.alerts) return el('span', { class: 'badge bad', 'aria-label': `${counts.alerts} open` }, counts.alerts);
  if (view === 'approvals' && counts?.approvals) return el('span', { class: 'badge bad', 'aria-label': `${counts.approvals} waiting` }, counts.approvals);
  const errors = view === 'policies' ? errorsOf(state.overview?.policies).length : 0;
  return errors ? el('span', { class: 'badge bad', 'aria-label': count(errors, 'mistake') }, errors) : null;
}

function tabs(current) {
  const tab = VIEWS.filter((view) => view.tab);
  const more = { name: 'more', title: 'More', key: '' };
  const inMore = !tab.some((view) => view.name === current);
  return [tab.map((view) => viewLink(view, current, true)), viewLink(more, inMore ? 'more' : current, true)];
}

function connection() {
  const [word, why] = CONNECTIONS[state.connection];
  return el('span', { class: `connection is-${state.connection}`, title: why, 'data-connection': state.connection }, el('span', { class: 'dot', 'aria-hidden': 'true' }), word);
}

function account() {
  if (!state.session) return null;
  const { name, role } = state.session;
  return el('a', { href: '#/more', class: 'account', title: `${name} may ${ROLE_WORDS[role] ?? role}`, 'data-role': role, 'data-view': 'more' },
    el('span', { class: 'account-name' }, name), el('span', { class: 'tag' }, role));
}

export const ROLE_WORDS = {
  read: 'look, and change nothing',
  operate: 'look, take snapshots and backups, hold drills and tests, start',
  restore: 'do all but delete and change the daemon: also revert, fork, stop',
  admin: 'do everything',
};

const errorsOf = (policies) => policies?.mistakes.filter((mistake) => mistake.severity === 'error') ?? [];

function banners() {
  const overview = state.overview;
  return [
    state.connection === 'away' && state.answeredAt ? banner('away', 'bad', `The daemon does not answer. What is shown was true at ${clock(state.answeredAt)}.`) : null,
    overview?.paused ? banner('paused', 'warn', 'Paused: nothing is begun by policy until somebody resumes.',
      may('admin') ? button('Resume', { class: 'small', 'data-action': 'resume', onclick: askResume }) : null) : null,
    overview?.draining ? banner('draining', 'warn', 'The daemon is ending: what runs is finished, nothing is begun.') : null,
    overview && route().path[0] !== 'policies' ? policyBanner(overview.policies) : null,
    overview?.counts.approvals && route().path[0] !== 'approvals' ? approvalBanner(overview.counts.approvals) : null,
  ];
}

function policyBanner(policies) {
  const errors = errorsOf(policies);
  if (policies.usable && !errors.length) return null;
  const first = errors[0];
  const where = first ? ` ${first.place}: ${first.what}.` : '';
  const more = errors.length > 1 ? ` And ${errors.length - 1} more.` : '';
  const what = policies.usable ? 'The policies have mistakes.' : 'The policies cannot be used; those read before count on.';
  return banner('policies', 'bad', `${what}${where}${more}`, el('a', { href: '#/policies', class: 'button small' }, 'What to do'));
}

function approvalBanner(waiting) {
  return banner('approvals', 'warn', `${count(waiting, 'request waits', 'requests wait')} for a second person's approval.`,
    el('a', { href: '#/approvals', class: 'button small' }, 'Look'));
}

function banner(name, kind, text, ...beside) {
  return el('div', { class: `banner ${kind}`, role: kind === 'bad' ? 'alert' : 'status', 'data-banner': name, 'data-key': name }, el('p', {}, text), ...beside);
}

export function askPause() {
  ask({
    name: 'pause', title: 'Pause all policies?', verb: 'Pause', act: () => post('/pause'),
    lines: ['What runs now is finished.', 'Nothing is begun by policy: no snapshot, no backup, no drill. RPOs go on counting.', 'What a person asks for is done all the same.'],
  });
}

export function askResume() {
  ask({ name: 'resume', title: 'Resume?', verb: 'Resume', act: () => post('/resume'), lines: ['What came due meanwhile is caught up, once for each schedule.'] });
}

export function askReload() {
  ask({
    name: 'reload', title: 'Read the policies again?', verb: 'Reload', act: async () => { await post('/reload'); message('The policies were read again'); },
    lines: ['The files are read and checked.', 'If any has an error, those read before count on.'],
  });
}

export async function logOut() {
  await send('DELETE', '/session').catch(() => {});
  location.reload();
}

const SHORTCUTS = [
  ['/', 'search machines'],
  ['?', 'this help'],
  ['Esc', 'close a dialog, empty the search, go up'],
  ['↑ ↓', 'from row to row of a list'],
  ['Enter', 'open'],
  ['s', 'take a snapshot of the machine that is shown'],
];

export function help() {
  const shortcuts = [...SHORTCUTS, ...views().map((view) => [`g ${view.key}`, view.title.toLowerCase()])];
  openDialog('help', 'Keyboard', () => [
    el('dl', { class: 'shortcuts' }, shortcuts.map(([keys, what]) => el('div', {},
      el('dt', {}, keys.split(' ').map((key) => el('kbd', {}, key))), el('dd', {}, what)))),
    el('p', { class: 'faint' }, `Keyframe ${state.overview?.version ?? ''} on ${state.overview?.host ?? 'this host'}, in ${state.overview?.home ?? '–'}`),
  ]);
}
