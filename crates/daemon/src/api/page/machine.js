// One machine: is it safe, what can be done, its snapshots, its days, its points, what it is owed.

import { actionButton } from './actions.js';
import { calendar } from './calendar.js';
import { refresh } from './api.js';
import { el } from './dom.js';
import { bytes, count, measured } from './format.js';
import { icon } from './icons.js';
import { jobsTable, runningCard } from './jobs.js';
import { owed } from './owed.js';
import { button, due, facts, machineState, nothing, objective, passed, section, shown, tag, verdict, when } from './parts.js';
import { points } from './points.js';
import { freshest, hash, state } from './state.js';
import { tree } from './tree.js';

const JOBS_SHOWN = 12;
const RANK = { running: 0, waiting: 1 };

const at = (name) => `/machines/${encodeURIComponent(name)}`;

export default {
  title: ({ path }) => path[1],
  parts: ({ path }) => ({ machine: at(path[1]), calendar: `${at(path[1])}/calendar?days=30`, points: `${at(path[1])}/points` }),
  slow: ['points', 'calendar'],
  draw(data, { path }) {
    const name = path[1];
    const known = data.machine.value;
    const row = known?.row ?? state.overview?.machines.find((row) => row.name === name);
    return [
      head(name, row, known?.owed),
      shown(data.machine, (machine) => body(name, machine, data)),
    ];
  },
};

function head(name, row, owed) {
  return el('header', { class: 'machine-head' },
    el('a', { href: '#/machines', class: 'back' }, icon('back'), 'Machines'),
    el('div', { class: 'heading' },
      el('h1', { tabindex: '-1' }, name),
      row ? machineState(row.state) : null,
      row ? row.tags.map((one) => tag(one)) : null,
      row?.group ? tag(`group ${row.group}`) : null),
    row ? actions(name, row, owed) : null);
}

function actions(name, row, owed) {
  const backups = (owed?.backups ?? []).map((backup) => backup.name);
  const up = ['running', 'paused'].includes(row.state);
  const buttons = [
    actionButton('snapshot', name, {}, { label: 'Snapshot now' }, { class: 'primary', 'aria-keyshortcuts': 's' }),
    backups.length ? actionButton('backup', name, {}, { backups }) : null,
    backups.length ? actionButton('drill', name, {}, { backups }) : null,
    up ? actionButton('stop', name) : actionButton('start', name),
  ].filter(Boolean);
  return buttons.length ? el('div', { class: 'actions' }, buttons) : el('p', { class: 'faint' }, 'Your role is read: nothing can be changed here.');
}

function body(name, machine, data) {
  const { row } = machine;
  const running = machine.jobs.map(freshest).filter((job) => job.state === 'running');
  return [
    standing(row),
    running.map(runningCard),
    section('Snapshots', 'snapshots', tree(name, machine.tree, row)),
    el('div', { class: 'pair' },
      section('Days', 'days', shown(data.calendar, calendar)),
      section('Owed', 'owed', owed(machine.owed, row), hardware(machine))),
    section('Restore points', 'points', pointsPart(name, data.points)),
    section('Jobs', 'jobs', jobs(name, machine.jobs.map(freshest).sort(latestFirst))),
  ];
}

/** The verdict and what it rests on. */
function standing(row) {
  return el('section', { class: `card standing is-${row.verdict}`, 'aria-label': 'Verdict', 'data-verdict': row.verdict },
    el('div', { class: 'standing-verdict' },
      verdict(row.verdict, true),
      row.reasons.length ? el('ul', { class: 'why' }, row.reasons.map((reason) => el('li', {}, reason))) : el('p', { class: 'faint' }, 'Everything that it is owed is there.')),
    el('dl', { class: 'standing-facts' },
      fact('Last snapshot', when(row.last_snapshot, 'none'), next('next', row.next.snapshot)),
      fact('Last point', when(row.last_point?.at, 'none'), pointFoot(row)),
      fact('Last drill', row.last_drill ? [passed(row.last_drill.passed), ' ', when(row.last_drill.at)] : when(null, 'never'), drillFoot(row)),
      fact('RPO', objective(row.rpo)),
      fact('RTO', objective(row.rto)),
      fact('Space of snapshots', bytes(row.snapshots_bytes), el('small', {}, count(row.snapshots, 'snapshot')))));
}

function fact(name, value, foot = null) {
  return el('div', {}, el('dt', {}, name), el('dd', {}, value, foot));
}

function next(word, time) {
  return time ? el('small', {}, `${word} `, due(time)) : null;
}

function pointFoot({ last_point: point, next: { backup } }) {
  if (!point) return next('next', backup);
  return el('small', {}, point.backup, backup ? [', next ', due(backup)] : null);
}

function drillFoot(row) {
  const took = row.last_drill?.took_ms;
  return el('small', {},
    took != null ? `back in ${measured(took)}` : null,
    row.next.drill ? [took != null ? ', ' : null, 'next ', due(row.next.drill)] : null,
    row.last_drill ? el('a', { href: hash(['drills'], { machine: row.name }), class: 'after' }, 'all') : null);
}

function hardware({ cpus, memory_bytes: memory, disks }) {
  return el('details', { class: 'hardware' },
    el('summary', {}, `${count(cpus, 'CPU')}, ${bytes(memory)} of memory, ${count(disks.length, 'disk')}`),
    facts(disks.map((disk) => [disk.id, `${bytes(disk.size_bytes)}, `, el('code', {}, disk.file)])));
}

function pointsPart(name, part) {
  const again = () => refresh(`${at(name)}/points`, { slow: true });
  return [
    shown(part, (value) => points(name, value), 'Reading the repositories'),
    part.value || part.error ? button(part.pending ? 'Reading…' : 'Read again', { class: 'small', 'data-action': 'read-points', disabled: Boolean(part.pending), onclick: again }) : null,
  ];
}

function latestFirst(a, b) {
  const time = (job) => job.ended ?? job.began ?? job.due;
  return (RANK[a.state] ?? 2) - (RANK[b.state] ?? 2) || (time(a) < time(b) ? 1 : -1);
}

function jobs(name, list) {
  if (!list.length) return nothing('Nothing was done yet.');
  const more = list.length > JOBS_SHOWN ? el('a', { href: hash(['jobs'], { machine: name }), class: 'more-link' }, `All jobs of ${name}`) : null;
  return [jobsTable(list.slice(0, JOBS_SHOWN), false), more];
}
