// Snapshots as a tree, the newest on top: what stands above something in its line follows it.

import { actionButton, allowed, namedSnapshots } from './actions.js';
import { el, svg } from './dom.js';
import { bytes, count } from './format.js';
import { icon } from './icons.js';
import { facts, machineLink, nothing, passed, size, trouble, when, whenInFull, button } from './parts.js';
import { redraw } from './state.js';

const LANE = 18;
const NODE_AT = 22;
const LANES_AT_MOST = 12;
const ROWS_AT_FIRST = 40;

/** What is open and chosen, of one machine. */
const is = { vm: null, open: new Set(), chosen: new Set(), all: false };

export function tree(vm, told, row) {
  if (is.vm !== vm) Object.assign(is, { vm, open: new Set(), chosen: new Set(), all: false });
  if (!told) return nothing('The snapshots cannot be told.');
  const rows = laidOut(told);
  const cut = is.all ? rows : rows.slice(0, ROWS_AT_FIRST);
  return [
    told.warning ? trouble({ message: told.warning }) : null,
    (told.damaged ?? []).map(damagedOne),
    told.snapshots.length === 0 ? nothing('There is no snapshot yet.') : el('ol', { class: 'tree', 'aria-label': `Snapshots of ${vm}, the newest first` }, cut.map((one) => drawn(vm, one, row))),
    rows.length > cut.length ? button(`Show all ${told.snapshots.length} snapshots`, { class: 'wide', 'data-action': 'show-all', onclick: () => { is.all = true; redraw(); } }) : null,
    told.stray_forks?.length ? el('p', { class: 'faint' }, 'Forked from a snapshot that is gone: ', told.stray_forks.map((fork) => [machineLink(fork), ' '])) : null,
    chosenBar(vm, told.snapshots),
  ];
}

function damagedOne({ id, reason }) {
  return trouble({ message: `Snapshot ${id} is damaged: ${reason}`, advice: 'keyframe fsck says what can be saved' });
}

/**
 * Rows with their place: each takes a lane, and every lane waits for one parent. A snapshot takes the leftmost lane that waits
 * for it; the others end in it.
 */
function laidOut(told) {
  const known = new Set(told.snapshots.map((one) => one.id));
  const newest = [...told.snapshots].sort((a, b) => (a.created < b.created ? 1 : a.created > b.created ? -1 : 0));
  const ordered = childrenFirst(newest);
  const lanes = [];
  const parentOf = (id) => (known.has(id) ? id : null);
  const place = (snapshot, id, parent) => {
    const waiting = lanes.flatMap((awaited, lane) => (id !== null && awaited === id ? [lane] : []));
    const free = lanes.indexOf(null);
    const lane = waiting[0] ?? (free < 0 ? lanes.length : free);
    const passing = lanes.flatMap((awaited, other) => (awaited !== null && !waiting.includes(other) ? [other] : []));
    for (const other of waiting) lanes[other] = null;
    lanes[lane] = parentOf(parent);
    while (lanes.length && lanes.at(-1) === null) lanes.pop();
    return { snapshot, lane, from: waiting, passing, goesOn: parentOf(parent) !== null };
  };
  const rows = [place(null, null, told.head), ...ordered.map((one) => place(one, one.id, one.parent))];
  const width = Math.min(LANES_AT_MOST, Math.max(...rows.map((row) => Math.max(row.lane, ...row.from, ...row.passing)))) + 1;
  return rows.map((row) => ({ ...row, width }));
}

/** By age, but none before what follows it: clocks of hosts may differ. */
function childrenFirst(newest) {
  const left = new Map();
  for (const one of newest) left.set(one.parent, (left.get(one.parent) ?? 0) + 1);
  const ordered = [];
  const todo = [...newest];
  while (todo.length) {
    const at = todo.findIndex((one) => !left.get(one.id));
    const [one] = todo.splice(Math.max(0, at), 1);
    left.set(one.parent, left.get(one.parent) - 1);
    ordered.push(one);
  }
  return ordered;
}

const x = (lane) => Math.min(lane, LANES_AT_MOST) * LANE + LANE / 2;

/** The lines left of a row. They reach from its top to its bottom however high it is. */
function gutter({ snapshot, lane, from, passing, goesOn, width }) {
  const line = (at, begin, end) => svg('line', { x1: x(at), x2: x(at), y1: begin, y2: end, class: `line lane-${at % 4}` });
  const bend = (at) => svg('path', { d: `M${x(at)} 0C${x(at)} ${NODE_AT * 0.8} ${x(lane)} ${NODE_AT * 0.3} ${x(lane)} ${NODE_AT}`, class: `line lane-${at % 4}` });
  return el('span', { class: 'gutter', style: { width: `${width * LANE}px` }, 'aria-hidden': 'true' }, svg('svg', {},
    passing.map((at) => line(at, 0, '100%')),
    from.map((at) => (at === lane ? line(at, 0, NODE_AT) : bend(at))),
    goesOn ? line(lane, NODE_AT, '100%') : null,
    node(snapshot, lane)));
}

function node(snapshot, lane) {
  if (!snapshot) return svg('circle', { cx: x(lane), cy: NODE_AT, r: 5, class: 'node present' });
  const kind = snapshot.memory ? 'whole' : 'disks';
  return svg('path', { d: `M${x(lane)} ${NODE_AT - 7}l7 7-7 7-7-7z`, class: `node ${kind} lane-${lane % 4}` });
}

function drawn(vm, row, machine) {
  const { snapshot } = row;
  if (!snapshot) {
    return el('li', { class: 'tree-row present-row', 'data-key': '(present)', 'data-present': true }, gutter(row),
      el('div', { class: 'tree-main' }, el('span', { class: 'tree-name' }, 'The present'), el('span', { class: 'faint' }, machine.state)));
  }
  const open = is.open.has(snapshot.id);
  return el('li', { class: open ? 'tree-row open' : 'tree-row', 'data-key': snapshot.id, 'data-snapshot': snapshot.name, 'data-id': snapshot.id }, gutter(row),
    el('div', { class: 'tree-main' }, title(snapshot, open), marks(snapshot), figures(snapshot), deeds(vm, snapshot), open ? details(snapshot) : null));
}

function title(snapshot, open) {
  return el('div', { class: 'tree-title' },
    allowed('delete') ? choice(snapshot) : null,
    el('button', { type: 'button', class: 'tree-name', 'aria-expanded': String(open), 'data-row': true, 'data-action': 'details', onclick: () => toggle(is.open, snapshot.id) }, snapshot.name),
    snapshot.note ? el('span', { class: 'note', title: snapshot.note }, snapshot.note) : null);
}

function choice(snapshot) {
  return el('input', { type: 'checkbox', class: 'choose', checked: is.chosen.has(snapshot.id), 'aria-label': `Choose ${snapshot.name}`, 'data-choose': snapshot.name, onchange: () => toggle(is.chosen, snapshot.id) });
}

function toggle(set, id) {
  if (!set.delete(id)) set.add(id);
  redraw();
}

const CONSISTENCY = {
  'running-state': 'memory and disks of one instant: the machine goes on where it was',
  application: 'disks, frozen with hooks: applications were told',
  filesystem: 'disks, frozen: file systems are clean',
  crash: 'disks as after a power cut',
};

function marks(snapshot) {
  return el('span', { class: 'marks' },
    el('span', { class: 'tag', title: CONSISTENCY[snapshot.consistency] }, snapshot.consistency),
    snapshot.pinned ? el('span', { class: 'tag', title: 'no rule and no policy removes it' }, icon('pin'), 'pinned') : null,
    snapshot.last_test ? passed(snapshot.last_test.verdict === 'passed', ['tested', 'test failed']) : null,
    snapshot.forks.map((fork) => el('span', { class: 'tag' }, icon('fork'), machineLink(fork))));
}

function figures(snapshot) {
  return el('span', { class: 'figures' }, when(snapshot.created), size(snapshot.bytes_own));
}

function deeds(vm, snapshot) {
  const one = { snapshot: snapshot.id };
  const context = { named: snapshot.name };
  const small = { class: 'small' };
  return el('span', { class: 'deeds' },
    actionButton('revert', vm, one, context, small),
    actionButton('fork', vm, one, context, small),
    actionButton('test', vm, one, context, small),
    actionButton('delete', vm, { snapshots: [snapshot.id] }, context, small));
}

function details(snapshot) {
  return el('div', { class: 'tree-details' }, facts([
    snapshot.note ? ['Note', snapshot.note] : null,
    ['Taken', whenInFull(snapshot.created), ` by ${snapshot.owner}`],
    ['Consistency', `${snapshot.consistency}: ${CONSISTENCY[snapshot.consistency] ?? 'disks'}`],
    ['Expires', snapshot.expires ? whenInFull(snapshot.expires) : 'never'],
    ['Space', `${bytes(snapshot.bytes_own)} of its own, ${bytes(snapshot.bytes_shared)} shared; deleting it alone frees ${bytes(snapshot.bytes_freed)}`],
    snapshot.memory_elsewhere ? ['Memory', `${bytes(snapshot.memory_elsewhere)} of it in older snapshots' files`] : null,
    ['Layers', String(snapshot.depth)],
    snapshot.last_test ? ['Last test', passed(snapshot.last_test.verdict === 'passed'), ' ', whenInFull(snapshot.last_test.started)] : ['Last test', 'never tested'],
    ['Id', el('code', {}, snapshot.id)],
  ]));
}

/** What is done to several at once. */
function chosenBar(vm, snapshots) {
  const chosen = snapshots.filter((one) => is.chosen.has(one.id));
  if (!chosen.length) return null;
  const frees = chosen.reduce((sum, one) => sum + one.bytes_freed, 0);
  return el('div', { class: 'chosen', role: 'status', 'data-key': 'chosen' },
    el('span', {}, `${count(chosen.length, 'snapshot')} chosen, at least ${bytes(frees)} to free`),
    actionButton('delete', vm, { snapshots: chosen.map((one) => one.id) }, { named: namedSnapshots(chosen), label: 'Delete them' }, { class: 'danger small', 'data-action': 'delete-chosen' }),
    button('Choose none', { class: 'small', onclick: () => { is.chosen.clear(); redraw(); } }));
}
