// All machines: how safe they are as a whole, then one row each.

import { el } from './dom.js';
import { bytes, capital, count } from './format.js';
import { forecastWords, isFullSoon, spaceChart } from './chart.js';
import { icon, verdictShape } from './icons.js';
import { alertLine } from './alerts.js';
import { subject } from './jobs.js';
import { button, due, loading, machineState, nothing, objective, progressBar, tag, trouble, verdict, when, WORDS } from './parts.js';
import { freshest, hash, redraw, setQuery, state } from './state.js';

const ROWS_AT_FIRST = 24;
const ROWS_MORE = 120;
const ALERTS_SHOWN = 3;
const LINES = 3;
const RANK = { unprotected: 0, 'at-risk': 1, protected: 2 };

const SORTS = {
  verdict: ['what needs you first', (a, b) => RANK[a.verdict] - RANK[b.verdict] || byName(a, b)],
  name: ['name', (a, b) => byName(a, b)],
  point: ['oldest last point', (a, b) => instant(a.last_point?.at) - instant(b.last_point?.at) || byName(a, b)],
  drill: ['oldest last drill', (a, b) => instant(a.last_drill?.at) - instant(b.last_drill?.at) || byName(a, b)],
  space: ['space of snapshots', (a, b) => (b.snapshots_bytes ?? 0) - (a.snapshots_bytes ?? 0) || byName(a, b)],
};

const instant = (at) => (at ? Date.parse(at) : 0);

/** Names with their numbers as long as each other, so that web-9 comes before web-10; of each name once. */
const keys = new Map();
function keyOf({ name }) {
  if (!keys.has(name)) keys.set(name, name.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(12, '0')));
  return keys.get(name);
}

function byName(a, b) {
  const [one, other] = [keyOf(a), keyOf(b)];
  return one < other ? -1 : one > other ? 1 : 0;
}

const is = { many: ROWS_AT_FIRST };

export default {
  title: () => 'Machines',
  draw(data, { query }) {
    const overview = state.overview;
    if (!overview) return state.overviewError ? trouble(state.overviewError) : loading();
    return [
      el('h1', { class: 'unseen', tabindex: '-1' }, 'Machines'),
      el('div', { class: 'summary' }, protection(overview, query), work(overview), spaceCard(overview.disk)),
      overview.alerts.length ? alertsCard(overview.alerts) : null,
      list(overview, query),
    ];
  },
};

function protection({ counts }, query) {
  if (!counts.machines) return el('section', { class: 'card' }, el('h2', { class: 'card-title' }, 'Protection'), el('p', { class: 'figure small' }, 'No machine yet'));
  const kinds = [['protected', counts.protected], ['at-risk', counts.at_risk], ['unprotected', counts.unprotected]];
  const worst = counts.unprotected ? 'unprotected' : counts.at_risk ? 'at-risk' : 'protected';
  return el('section', { class: `card protection is-${worst}`, 'aria-labelledby': 'protection-title' },
    el('h2', { class: 'card-title', id: 'protection-title' }, 'Protection'),
    el('p', { class: 'figure' }, verdictShape(worst), el('span', {}, `${counts.protected} of ${counts.machines}`), el('span', { class: 'figure-words' }, 'protected')),
    el('div', { class: 'segments', 'aria-hidden': 'true' },
      kinds.filter(([, n]) => n).map(([kind, n]) => el('span', { class: `segment is-${kind}`, style: { 'flex-grow': String(n) } }))),
    el('div', { class: 'chips', role: 'group', 'aria-label': 'Show only' }, kinds.map(([kind, n]) => chip(kind, n, query))));
}

function chip(kind, n, query) {
  const on = query.verdict === kind;
  return el('button', { type: 'button', class: `chip is-${kind}`, 'aria-pressed': String(on), 'data-filter': kind, onclick: () => filter({ verdict: on ? null : kind }) },
    verdictShape(kind), `${n} ${WORDS[kind]}`);
}

function filter(change) {
  is.many = ROWS_AT_FIRST;
  setQuery(change);
}

function work({ jobs, counts, machines, paused }) {
  const running = jobs.map(freshest).filter((job) => job.state === 'running').slice(0, LINES);
  const more = counts.jobs_running - running.length;
  const foot = [more > 0 ? `${more} more run` : null, counts.jobs_waiting ? `${count(counts.jobs_waiting, 'job')} waiting` : null].filter(Boolean);
  return el('section', { class: 'card', 'aria-labelledby': 'work-title' },
    el('h2', { class: 'card-title', id: 'work-title' }, 'Work'),
    running.length ? null : el('p', { class: 'figure small' }, paused ? 'Paused' : 'Nothing runs'),
    running.map(runningLine),
    paused ? null : dueNext(machines, LINES - Math.max(1, running.length)).map(dueLine),
    foot.length ? el('a', { class: 'card-foot', href: '#/jobs' }, foot.join(', ')) : null);
}

function runningLine(job) {
  return el('a', { class: 'running', href: hash(['jobs', job.id]), 'data-key': job.id },
    el('span', { class: 'running-words' }, `${capital(job.kind)} of ${subject(job)}`),
    progressBar(job));
}

function dueLine({ kind, at, name }) {
  return el('p', { class: 'due' }, el('span', {}, `${capital(kind)} of ${name}`), due(at));
}

/** What is due next of all machines, the soonest first. */
function dueNext(machines, many) {
  const next = [];
  for (const row of machines) {
    for (const kind of ['snapshot', 'backup', 'drill']) {
      const at = row.next[kind];
      if (!at || (next.length === many && at >= next.at(-1)?.at)) continue;
      next.push({ kind, at, name: row.name });
      next.sort((a, b) => (a.at < b.at ? -1 : 1));
      next.length = Math.min(next.length, many);
    }
  }
  return next;
}

function spaceCard(disk) {
  return el('a', { class: 'card space-card', href: '#/space', 'aria-labelledby': 'space-title' },
    el('h2', { class: 'card-title', id: 'space-title' }, 'Space'),
    el('p', { class: 'figure' }, el('span', {}, bytes(disk.free_bytes)), el('span', { class: 'figure-words' }, `free of ${bytes(disk.total_bytes)}`)),
    spaceChart(disk, 90),
    el('p', { class: isFullSoon(disk) ? 'card-foot bad' : 'card-foot' }, isFullSoon(disk) ? verdictShape('at-risk') : null, capital(forecastWords(disk))));
}

function alertsCard(alerts) {
  const more = alerts.length - ALERTS_SHOWN;
  return el('section', { class: 'alerts-short', 'aria-label': 'Alerts' },
    alerts.slice(0, ALERTS_SHOWN).map(alertLine),
    more > 0 ? el('a', { href: '#/alerts', class: 'more-link' }, `${count(more, 'more alert')}`) : null);
}

function list({ machines }, query) {
  if (!machines.length) return el('div', { class: 'section' }, nothing('There are no machines yet.', 'keyframe vm create NAME makes one; it appears here by itself.'));
  const rows = chosen(machines, query);
  return el('section', { 'aria-label': 'Machines' },
    toolbar(query, rows.length, machines.length),
    rows.length ? grid(rows) : nothing('No machine is like that.', 'Esc empties the search.'));
}

function chosen(machines, { q = '', verdict: wanted, sort = 'verdict' }) {
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  return machines
    .filter((row) => (!wanted || row.verdict === wanted) && words.every((word) => matches(row, word)))
    .sort((SORTS[sort] ?? SORTS.verdict)[1]);
}

function matches(row, word) {
  const texts = [row.name, row.state, row.policy, row.group, WORDS[row.verdict], ...row.tags];
  return texts.some((text) => text?.toLowerCase().includes(word));
}

function toolbar({ q = '', sort = 'verdict', verdict: wanted }, found, all) {
  const told = found === all ? count(all, 'machine') : `${found} of ${count(all, 'machine')}`;
  return el('div', { class: 'toolbar' },
    el('div', { class: 'search', role: 'search' }, icon('search'),
      el('input', {
        type: 'search', value: q, placeholder: 'Name, tag, policy, state', 'aria-label': 'Search machines', autocomplete: 'off', spellcheck: 'false',
        'aria-keyshortcuts': '/', oninput: (event) => filter({ q: event.target.value }),
      }),
      el('kbd', { 'aria-hidden': 'true' }, '/')),
    el('span', { class: 'found', role: 'status', 'data-found': found }, told),
    wanted ? button(`Only ${WORDS[wanted] ?? wanted}`, { class: 'small', 'data-action': 'all', 'aria-label': `Only ${WORDS[wanted] ?? wanted}: show all again`, onclick: () => filter({ verdict: null }) }, icon('close')) : null,
    el('label', { class: 'sort' }, el('span', {}, 'By'),
      el('select', { value: sort, 'aria-label': 'Sort by', onchange: (event) => filter({ sort: event.target.value === 'verdict' ? null : event.target.value }) },
        Object.entries(SORTS).map(([name, [words]]) => el('option', { value: name }, words)))));
}

const HEADS = ['Verdict', 'Machine', 'Why', 'Last point', 'Last drill', 'RPO', 'RTO'];

/** Rows are drawn as the reader comes to them: the first view of 500 is that of the first few. */
function grid(rows) {
  return [
    el('div', { class: 'grid', role: 'table', 'aria-label': 'Machines', 'aria-rowcount': rows.length + 1 },
      el('div', { class: 'grid-row grid-head', role: 'row', 'data-key': '(heads)' }, HEADS.map((head) => el('span', { role: 'columnheader' }, head))),
      rows.slice(0, is.many).map(machineRow)),
    rows.length > is.many ? moreRows(rows.length - is.many) : null,
  ];
}

function moreRows(left) {
  const node = button(`Show ${Math.min(left, ROWS_MORE)} more of ${left}`, { class: 'wide', 'data-action': 'more', 'data-key': 'more', onclick: showMore });
  watchEnd();
  return node;
}

function showMore() {
  is.many += ROWS_MORE;
  redraw();
}

const end = new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) showMore(); }, { rootMargin: '500px' });

/** The end is looked for once it is in the page. */
function watchEnd() {
  end.disconnect();
  requestAnimationFrame(() => {
    const node = document.querySelector('[data-action="more"]');
    if (node) end.observe(node);
  });
}

function machineRow(row) {
  return el('div', { class: `grid-row is-${row.verdict}`, role: 'row', 'data-key': row.name, 'data-machine': row.name, 'data-verdict': row.verdict },
    cell('verdict', verdict(row.verdict)),
    cell('who',
      el('a', { href: hash(['machines', row.name]), class: 'name', 'data-row': true, title: row.name }, row.name),
      el('span', { class: 'who-more' },
        machineState(row.state),
        row.running_job ? el('span', { class: 'tag busy' }, 'at work') : null,
        row.tags.slice(0, 3).map((one) => tag(one)))),
    cell('why', reasons(row)),
    cell('point', label('point '), when(row.last_point?.at, 'none')),
    cell('drill', label('drill '), drill(row.last_drill)),
    cell('rpo', label('RPO '), objective(row.rpo, 'none')),
    cell('rto', label('RTO '), objective(row.rto, 'none')));
}

const cell = (name, ...children) => el('span', { class: `cell-${name}`, role: 'cell' }, ...children);
const label = (text) => el('span', { class: 'cell-label' }, text);

function reasons(row) {
  if (row.reasons.length) return el('span', { class: 'reasons', title: row.reasons.join('\n') }, row.reasons.join('; '));
  return el('span', { class: 'reasons faint' }, row.policy ? `as policy ${row.policy} says` : 'nothing is missing');
}

function drill(last) {
  if (!last) return el('span', { class: 'faint' }, 'never');
  return el('span', { class: last.passed ? 'drill-ok' : 'drill-bad' }, icon(last.passed ? 'drills' : 'crashed'), last.passed ? null : 'failed ', when(last.at));
}
