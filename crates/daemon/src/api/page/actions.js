// What can be done to a machine: each shows its plan, asks, and is then a job.

import { post } from './api.js';
import { el } from './dom.js';
import { capital, count, exactSpan } from './format.js';
import { buttons, message, openDialog } from './dialog.js';
import { button, loading, trouble } from './parts.js';
import { hash, may, redraw, state } from './state.js';

const PLAN_AFTER_MS = 250;
const BUSY = 409;
const BUSY_AGAIN_MS = 2000;

const text = (name, label, more = {}) => ({ kind: 'text', name, label, ...more });
const check = (name, label, hint) => ({ kind: 'check', name, label, hint });

/** `role`: who may. `asks`: what is asked before. `danger`: what it may take away. */
const ACTIONS = {
  snapshot: {
    role: 'operate', label: 'Snapshot', verb: 'Take the snapshot', title: (vm) => `Take a snapshot of ${vm}`,
    asks: () => [
      text('note', 'Note', { hint: 'why it is taken' }),
      text('ttl', 'Keep for', { hint: 'such as 12h or 7d; empty keeps it', pattern: '[0-9]+[smhdw]', short: true }),
      check('pin', 'Pin it', 'no rule and no policy removes it'),
      check('disk_only', 'Disks only', 'without memory: it will boot, not go on'),
    ],
  },
  backup: {
    role: 'operate', label: 'Back up', verb: 'Back up', title: (vm) => `Back up ${vm}`,
    asks: ({ backups }) => [{ kind: 'choice', name: 'backup', label: 'Backup', options: backups }],
  },
  drill: {
    role: 'operate', label: 'Drill', verb: 'Hold the drill', title: (vm) => `Hold a drill of ${vm}`,
    asks: ({ backups }) => [{ kind: 'choice', name: 'backup', label: 'Of backup', options: backups }],
  },
  test: { role: 'operate', label: 'Test', verb: 'Test it', title: (vm, { named }) => `Test ${vm}@${named}`, asks: () => [] },
  start: { role: 'operate', label: 'Start', verb: 'Start', title: (vm) => `Start ${vm}`, asks: () => [] },
  revert: {
    role: 'restore', label: 'Revert', verb: 'Revert', title: (vm, { named }) => `Revert ${vm} to ${named}`,
    asks: () => [check('discard', 'Discard the present', 'otherwise it is kept as a snapshot first')],
    danger: (values) => values.discard,
  },
  fork: {
    role: 'restore', label: 'Fork', verb: 'Fork', title: (vm, { named }) => `Fork ${vm}@${named}`,
    asks: () => [
      text('name', 'New machine', { required: true, pattern: '[A-Za-z0-9][A-Za-z0-9._\\-]*' }),
      { kind: 'number', name: 'count', label: 'How many', min: 1, max: 100 },
    ],
    begin: (vm) => ({ name: `${vm}-fork`, count: 1 }),
  },
  stop: {
    role: 'restore', label: 'Stop', verb: 'Stop', title: (vm) => `Stop ${vm}`,
    asks: () => [check('force', 'Without asking the guest', 'as if its power were cut')],
    danger: (values) => values.force,
  },
  delete: {
    role: 'admin', label: 'Delete', verb: 'Delete', title: (vm, { named }) => `Delete ${named} of ${vm}`,
    asks: () => [], danger: () => true,
  },
};

export const allowed = (action) => may(ACTIONS[action].role);

/** A button for it, or nothing where the role may not. `fixed` is what is not asked any more, such as the snapshot. */
export function actionButton(action, vm, fixed = {}, context = {}, attributes = {}) {
  if (!allowed(action)) return null;
  const named = context.named ? `: ${context.named}` : '';
  return button(context.label ?? ACTIONS[action].label, {
    'data-action': action,
    'aria-label': named ? `${ACTIONS[action].label}${named}` : null,
    'aria-haspopup': 'dialog',
    onclick: () => openAction(action, vm, fixed, context),
    ...attributes,
  });
}

export function openAction(action, vm, fixed = {}, context = {}) {
  const what = ACTIONS[action];
  const fields = what.asks(context);
  const values = { ...what.begin?.(vm) };
  for (const field of fields) if (field.kind === 'choice') values[field.name] = field.options[0];
  const is = { action, vm, fixed, what, fields, values, plan: null, approval: null, error: null, planning: false, busy: false, asked: 0, timer: null };
  const dialog = openDialog(action, capital(what.title(vm, context)), (dialog) => drawn(is, dialog), {
    closed: () => {
      clearTimeout(is.timer);
      is.asked += 1;
    },
  });
  plan(is, dialog);
}

function drawn(is, dialog) {
  const danger = Boolean(is.what.danger?.(is.values));
  return [
    is.fields.length ? el('form', { class: is.fields.every(({ kind }) => kind === 'check') ? 'fields checks' : 'fields', onsubmit: (event) => submitted(event, is, dialog) },
      is.fields.map((field) => drawnField(field, is, dialog)),
      el('input', { type: 'submit', hidden: true })) : null,
    el('h3', { class: 'plan-title' }, 'What will happen'),
    el('div', { class: 'plan-box', 'aria-live': 'polite', 'aria-busy': String(is.planning), 'data-plan': is.plan ? 'ready' : 'none' }, drawnPlan(is)),
    is.plan && is.approval ? el('p', { class: 'approval-note', 'data-needs-approval': true },
      `It is not done at once: a second person has to approve it within ${exactSpan(is.approval.valid_s)}.`) : null,
    buttons(dialog, is.approval ? 'Ask for approval' : is.what.verb, { danger, first: is.fields.length ? null : 'dismiss', disabled: !is.plan || is.planning || is.busy, confirm: () => carryOut(is, dialog) }),
  ];
}

function drawnPlan(is) {
  if (is.error) return trouble(is.error);
  if (!is.plan) return loading('Planning');
  return el('ul', { class: is.planning ? 'plan stale' : 'plan' }, is.plan.map((line) => el('li', {}, line)));
}

function drawnField(field, is, dialog) {
  const id = `field-${field.name}`;
  const changed = (value) => {
    is.values[field.name] = value;
    // What was planned for something else cannot be confirmed meanwhile.
    plan(is, dialog, PLAN_AFTER_MS);
    dialog.redraw();
  };
  if (field.kind === 'check') return drawnCheck(field, id, is, changed);
  return el('div', { class: 'field', 'data-key': id },
    el('label', { for: id }, field.label),
    el('div', {}, drawnInput(field, id, is, changed), field.hint ? el('span', { class: 'hint', id: `${id}-hint` }, field.hint) : null));
}

function drawnCheck(field, id, is, changed) {
  return el('div', { class: 'field check', 'data-key': id },
    el('input', { type: 'checkbox', id, name: field.name, checked: Boolean(is.values[field.name]), 'aria-describedby': `${id}-hint`, onchange: (event) => changed(event.target.checked) }),
    el('label', { for: id }, field.label),
    el('span', { class: 'hint', id: `${id}-hint` }, field.hint));
}

function drawnInput(field, id, is, changed) {
  const value = is.values[field.name] ?? '';
  const common = { id, name: field.name, value, 'aria-describedby': field.hint ? `${id}-hint` : null };
  if (field.kind === 'choice') {
    return el('select', { ...common, onchange: (event) => changed(event.target.value) },
      field.options.map((option) => el('option', { value: option }, option)));
  }
  if (field.kind === 'number') {
    return el('input', { ...common, type: 'number', min: field.min, max: field.max, class: 'short', oninput: (event) => changed(event.target.valueAsNumber) });
  }
  return el('input', {
    ...common, type: 'text', required: field.required, pattern: field.pattern, class: field.short ? 'short' : null,
    autocomplete: 'off', spellcheck: 'false', 'data-first': field.required, oninput: (event) => changed(event.target.value.trim()),
  });
}

function submitted(event, is, dialog) {
  event.preventDefault();
  if (is.plan && !is.planning && !is.busy) carryOut(is, dialog);
}

function body(is, plan) {
  const given = Object.entries(is.values).filter(([, value]) => value !== '' && value !== false);
  return { action: is.action, plan, ...is.fixed, ...Object.fromEntries(given) };
}

/** Why no plan can be asked for yet. */
function wrong(is, dialog) {
  const bad = [...dialog.node.querySelectorAll('form.fields input')].find((input) => !input.checkValidity());
  if (!bad) return null;
  const label = is.fields.find((field) => field.name === bad.name)?.label ?? bad.name;
  return { message: bad.value === '' ? `${label} is missing` : `${label} cannot be “${bad.value}”`, advice: null };
}

const path = (is) => `/machines/${encodeURIComponent(is.vm)}/actions`;

/** Asks for the plan of what is chosen now, until the machine is free for it; an answer to what was chosen before is left aside. */
function plan(is, dialog, after = 0) {
  clearTimeout(is.timer);
  is.planning = true;
  const number = (is.asked += 1);
  is.timer = setTimeout(async () => {
    const told = await planned(is, dialog);
    if (number !== is.asked) return;
    Object.assign(is, told, { planning: false });
    dialog.redraw();
    // Another command is at work on the machine: it ends.
    if (told.error?.status === BUSY) plan(is, dialog, BUSY_AGAIN_MS);
  }, after);
}

async function planned(is, dialog) {
  const error = wrong(is, dialog);
  if (error) return { plan: null, error };
  try {
    const { plan, approval = null } = await post(path(is), body(is, true));
    return { plan, approval, error: null };
  } catch (error) {
    return { plan: null, error };
  }
}

async function carryOut(is, dialog) {
  is.busy = true;
  dialog.redraw();
  try {
    const { job, approval } = await post(path(is), body(is, false));
    if (approval) waits(approval);
    else begun(job);
    dialog.close();
  } catch (error) {
    Object.assign(is, { busy: false, plan: null, error });
    dialog.redraw();
  }
}

function begun(job) {
  state.live.set(job.id, job);
  state.ours.add(job.id);
  if (state.overview && !state.overview.jobs.some(({ id }) => id === job.id)) state.overview.jobs.unshift(job);
  message(`${capital(job.kind)} of ${job.machine} ${job.state === 'waiting' ? 'waits for its turn' : 'has begun'}`, { href: hash(['jobs', job.id]) });
  redraw();
}

function waits({ kind, machine }) {
  message(`${capital(kind)} of ${machine} waits for a second person's approval`, { href: hash(['approvals']) });
  redraw();
}

/** Tells what came of the jobs that this page began. */
export function tellEnds(jobs) {
  for (const job of jobs) {
    if (!state.ours.has(job.id) || ['waiting', 'running'].includes(job.state)) continue;
    state.ours.delete(job.id);
    const outcome = job.what ? `: ${job.what}` : '';
    message(`${capital(job.kind)} of ${job.machine} ${job.state}${outcome}`, { href: hash(['jobs', job.id]), failed: ['failed', 'incomplete'].includes(job.state) });
  }
}

export function namedSnapshots(snapshots) {
  return snapshots.length === 1 ? snapshots[0].name : count(snapshots.length, 'snapshot');
}
