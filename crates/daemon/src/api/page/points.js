// Restore points of a machine, as its repositories tell them.

import { el } from './dom.js';
import { icon } from './icons.js';
import { firstOf, nothing, size, table, tag, trouble, when } from './parts.js';
import { hash, may, now, redraw } from './state.js';

const ROWS_AT_FIRST = 12;
const is = { vm: null, all: false, backup: '' };

export function points(vm, { points, problems }) {
  if (is.vm !== vm) Object.assign(is, { vm, all: false, backup: '' });
  const backups = [...new Set(points.map((point) => point.backup))].sort();
  const chosen = points.filter((point) => !is.backup || point.backup === is.backup).sort((a, b) => (a.created < b.created ? 1 : -1));
  return [
    (problems ?? []).map((problem) => trouble({ message: `${problem.backup}: ${problem.what}` })),
    backups.length > 1 ? filter(backups) : null,
    chosen.length ? firstOf(chosen, is.all ? Infinity : ROWS_AT_FIRST, (list) => drawn(vm, list), () => { is.all = true; redraw(); })
      : nothing('There is no restore point: what is on this host only is lost with it.'),
  ];
}

function filter(backups) {
  const one = (name, words) => el('button', { type: 'button', class: 'chip', 'aria-pressed': String(is.backup === name), onclick: () => { is.backup = name; redraw(); } }, words);
  return el('div', { class: 'chips', role: 'group', 'aria-label': 'Backup' }, one('', 'all'), backups.map((name) => one(name, name)));
}

function drawn(vm, list) {
  const heads = ['Created', 'Backup', 'Consistency', { text: 'Size', class: 'end' }, { text: 'New', class: 'end' }, 'Kept', { text: '', class: 'end' }];
  return table(`Restore points of ${vm}`, heads, list.map((point) => ({
    'data-point': point.id, 'data-key': `${point.backup}/${point.id}`,
    cells: [
      when(point.created), point.backup, tag(point.consistency), size(point.bytes), size(point.new_bytes), kept(point),
      !may('restore') ? null : el('a', { class: 'button small', href: filesHash(vm, point), 'data-action': 'browse', 'data-row': true, 'aria-label': `Files of the point of ${point.created}` }, icon('directory'), 'Files'),
    ],
  })));
}

export function filesHash(vm, { backup, id }, path = '') {
  return hash(['machines', vm, 'points', backup, id], { path });
}

function kept(point) {
  const locked = point.locked_until && Date.parse(point.locked_until) > now();
  const marks = [
    point.hold ? el('span', { class: 'tag' }, icon('pin'), 'hold') : null,
    locked ? el('span', { class: 'tag' }, icon('lock'), 'locked, ends ', when(point.locked_until)) : null,
    (point.tags ?? []).map((one) => tag(one)),
  ];
  return point.hold || locked || point.tags?.length ? el('span', { class: 'marks' }, marks) : el('span', { class: 'faint' }, 'by its rule');
}
