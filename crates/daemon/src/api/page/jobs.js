// Work: what runs, what waits, what came of the rest.

import { post } from './api.js';
import { el } from './dom.js';
import { ask } from './dialog.js';
import { bytes, capital, measured, span } from './format.js';
import { icon, verdictShape } from './icons.js';
import { button, due, heading, machineLink, nothing, progressBar, shown, table, when } from './parts.js';
import { freshest, hash, may, setQuery, state } from './state.js';

const LIMIT = 200;
const SHAPES = { done: 'protected', incomplete: 'at-risk', failed: 'unprotected' };
const ENDED = ['done', 'incomplete', 'failed', 'cancelled'];

export default {
  title: () => 'Jobs',
  parts: ({ query }) => ({ jobs: jobsPath(query) }),
  draw({ jobs }, { query }) {
    return [
      heading('Jobs', filters(query)),
      shown(jobs, (value) => lists(value.jobs.map(freshest), query)),
    ];
  },
};

function jobsPath({ machine, state: wanted }) {
  const search = new URLSearchParams({ ...(machine && { machine }), ...(wanted && { state: wanted }), limit: String(LIMIT) });
  return `/jobs?${search}`;
}

function filters({ machine = '', state: wanted = '' }) {
  const states = ['running', 'waiting', ...ENDED];
  const names = (state.overview?.machines ?? []).map((row) => row.name);
  return el('div', { class: 'filters' },
    el('select', { 'aria-label': 'State', value: wanted, onchange: (event) => chosen({ state: event.target.value }) },
      el('option', { value: '' }, 'any state'), states.map((one) => el('option', { value: one }, one))),
    el('select', { 'aria-label': 'Machine', value: machine, onchange: (event) => chosen({ machine: event.target.value }) },
      el('option', { value: '' }, 'all machines'), names.map((one) => el('option', { value: one }, one))));
}

/** Another query is fetched anew. */
function chosen(change) {
  setQuery(change);
  dispatchEvent(new HashChangeEvent('hashchange'));
}

function lists(jobs, query) {
  if (!jobs.length) return nothing('There are no such jobs.', query.state || query.machine ? 'Choose other filters to see more.' : null);
  const running = jobs.filter((job) => job.state === 'running');
  const waiting = jobs.filter((job) => job.state === 'waiting').sort((a, b) => (a.due < b.due ? -1 : 1));
  const ended = jobs.filter((job) => ENDED.includes(job.state)).sort((a, b) => ((a.ended ?? '') < (b.ended ?? '') ? 1 : -1));
  return [
    running.length ? group('Running', running.map(runningCard)) : null,
    waiting.length ? group('Waiting', waitingTable(waiting)) : null,
    ended.length ? group('Ended', jobsTable(ended)) : null,
  ];
}

function group(title, content) {
  return el('section', { class: 'section', 'data-key': title }, el('h2', { class: 'section-title' }, title), content);
}

export function runningCard(job) {
  return el('article', { class: 'card job', 'data-job': job.id, 'data-state': job.state, 'data-key': job.id },
    el('div', { class: 'job-head' },
      el('a', { href: hash(['jobs', job.id]), class: 'name', 'data-row': true }, jobTitle(job)),
      job.machine ? whose(job) : null,
      el('span', { class: 'faint' }, job.by, job.began ? [', began ', when(job.began)] : null, job.attempt > 1 ? `, attempt ${job.attempt}` : null),
      cancelButton(job)),
    progressBar(job),
    el('p', { class: 'job-progress' }, progressWords(job)));
}

export function jobTitle(job) {
  return `${capital(job.kind)}${job.backup ? ` “${job.backup}”` : ''}`;
}

function progressWords({ progress }) {
  if (!progress) return 'No progress is told.';
  const { done_bytes: done, total_bytes: total, rate_bytes_s: rate, left_s: left, text } = progress;
  const figures = [
    done != null ? `${bytes(done)}${total != null ? ` of ${bytes(total)}` : ''}` : null,
    rate != null ? `${bytes(rate)}/s` : null,
    left != null ? `${span(left)} left` : null,
  ].filter(Boolean);
  return [el('span', { class: 'number' }, figures.join(' · ')), text ? el('span', { class: 'faint' }, figures.length ? ' · ' : '', text) : null];
}

export function cancelButton(job) {
  if (!['running', 'waiting'].includes(job.state) || !may('operate')) return null;
  return button('Cancel', { class: 'small', 'data-action': 'cancel', 'aria-label': `Cancel ${job.kind} of ${subject(job)}`, onclick: () => askCancel(job) });
}

function askCancel(job) {
  ask({
    name: 'cancel', title: `Cancel this ${job.kind}?`, verb: `Cancel the ${job.kind}`, danger: true,
    lines: [`${jobTitle(job)} of ${subject(job)} is interrupted.`, 'What is committed stays; what is in flight is undone. The guest runs on.'],
    act: async () => { state.live.set(job.id, (await post(`/jobs/${encodeURIComponent(job.id)}/cancel`)).job); },
  });
}

export function jobState(job) {
  const shape = SHAPES[job.state];
  return el('span', { class: `verdict is-${shape ?? job.state}` }, shape ? verdictShape(shape) : icon({ running: 'jobs', waiting: 'paused', cancelled: 'close' }[job.state]), job.state);
}

function waitingTable(jobs) {
  return table('Waiting jobs', ['Job', 'Machine', 'Due', 'By', 'Why', { text: '', class: 'end' }], jobs.map((job) => ({
    'data-job': job.id, 'data-state': job.state, 'data-key': job.id,
    cells: [titleLink(job), whose(job), due(job.retry_at ?? job.due), job.by, waits(job), cancelButton(job)],
  })));
}

function waits(job) {
  if (!job.retry_at) return el('span', { class: 'faint' }, 'waits for its turn');
  return el('span', {}, job.what ? `${job.what}; ` : null, `attempt ${job.attempt} follows`);
}

/** Jobs that ended, or all of one machine's. */
export function jobsTable(jobs, withMachine = true) {
  const heads = ['Outcome', 'Job', ...(withMachine ? ['Machine'] : []), 'When', { text: 'Took', class: 'end' }, 'What came of it'];
  return table('Jobs', heads, jobs.map((job) => ({
    'data-job': job.id, 'data-state': job.state, 'data-key': job.id,
    cells: [
      jobState(job), titleLink(job), ...(withMachine ? [whose(job)] : []), when(job.ended ?? job.began ?? job.due), took(job),
      el('span', { class: 'clamp', title: job.what }, job.what ?? '–', el('span', { class: 'faint' }, ` · ${job.by}`)),
    ],
  })), 'jobs-table');
}

const titleLink = (job) => el('a', { href: hash(['jobs', job.id]), class: 'name', 'data-row': true }, jobTitle(job));

/** Whom a job is for, in words: a machine, or a group's together. */
export const subject = (job) => (job.group ? `group ${job.group}` : job.machine ?? 'the repository');

/** The same with links. */
export function whose(job) {
  if (!job.machine) return el('span', { class: 'faint' }, '–');
  if (!job.group) return machineLink(job.machine);
  const links = job.machines.flatMap((name, at) => [at ? ', ' : '', machineLink(name)]);
  return el('span', {}, el('span', { class: 'faint' }, `group ${job.group}: `), links);
}

export function took(job) {
  const ms = job.began && job.ended ? Date.parse(job.ended) - Date.parse(job.began) : null;
  return el('span', { class: 'number' }, measured(ms));
}
