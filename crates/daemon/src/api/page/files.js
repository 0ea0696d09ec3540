// The files of a restore point: disks, volumes, directories; to look through and to take out.

import { el } from './dom.js';
import { absolute } from './format.js';
import { icon } from './icons.js';
import { heading, nothing, shown, size, table, when } from './parts.js';
import { filesHash } from './points.js';

const ROOT = '/api/v1';
const INSIDE = new Set(['directory', 'disk', 'partition', 'volume', 'file-system', 'filesystem']);
const SHAPES = { file: 'file', link: 'link', directory: 'directory' };

const spot = ({ path: [, vm, , backup, id], query }) => ({ vm, backup, id, path: query.path ?? '' });
const api = ({ vm, backup, id }) => `/points/${[backup, vm, id].map(encodeURIComponent).join('/')}`;

export default {
  title: (at) => `Files of ${spot(at).vm}`,
  parts: (at) => ({ files: `${api(spot(at))}/files?${new URLSearchParams({ path: spot(at).path })}` }),
  slow: ['files'],
  draw({ files }, at) {
    const place = spot(at);
    return [
      el('a', { href: `#/machines/${encodeURIComponent(place.vm)}`, class: 'back' }, icon('back'), place.vm),
      heading(`Files of ${place.vm}`, el('span', { class: 'faint' }, `${place.backup}, point ${place.id.slice(0, 12)}`)),
      crumbs(place),
      shown(files, ({ entries }) => listing(place, entries), 'Reading the point'),
    ];
  },
};

/** From the disks down to here. `disk0:1:/etc/nginx` is the volume `disk0:1:/`, then a step for each directory. */
function crumbs(place) {
  const steps = [['disks', '']];
  const [, volume, rest] = place.path.match(/^(.*?:)(\/.*)$/s) ?? [null, place.path, ''];
  if (volume) steps.push([volume.replace(/:$/, ''), rest ? `${volume}/` : volume]);
  let path = volume;
  for (const name of rest.split('/').filter(Boolean)) {
    path += `/${name}`;
    steps.push([name, path]);
  }
  return el('nav', { class: 'crumbs', 'aria-label': 'Path' }, el('ol', {}, steps.map(([name, to], n) => el('li', {},
    n === steps.length - 1 ? el('span', { 'aria-current': 'page' }, name) : el('a', { href: filesHash(place.vm, place, to) }, name)))));
}

function listing(place, entries) {
  if (!entries.length) return nothing('Nothing is in here.');
  const sorted = [...entries].sort((a, b) => INSIDE.has(b.kind) - INSIDE.has(a.kind) || (a.name < b.name ? -1 : 1));
  const heads = ['Name', { text: 'Size', class: 'end' }, 'Changed', 'Mode', { text: '', class: 'end' }];
  return table('Files', heads, sorted.map((entry) => ({
    'data-entry': entry.name, 'data-kind': entry.kind, 'data-key': entry.path ?? entry.name,
    cells: [name(place, entry), entry.bytes == null ? null : size(entry.bytes), changed(entry.modified), entry.mode ? el('code', {}, entry.mode) : null, download(place, entry)],
  })), 'files-table');
}

function name(place, entry) {
  const shape = icon(SHAPES[entry.kind] ?? 'disk');
  const about = [
    ['file', 'directory'].includes(entry.kind) ? null : entry.kind,
    entry.content, entry.label, entry.target ? `to ${entry.target}` : null,
  ].filter(Boolean).join(', ');
  const kind = about ? el('span', { class: 'faint' }, about) : null;
  if (!INSIDE.has(entry.kind) || entry.path === null) return el('span', { class: 'entry' }, shape, entry.name, kind);
  return el('a', { class: 'entry name', 'data-row': true, href: filesHash(place.vm, place, entry.path) }, shape, entry.name, kind);
}

const changed = (at) => (at ? el('span', { title: absolute(at) }, when(at)) : null);

function download(place, entry) {
  if (entry.kind !== 'file' || entry.path === null) return null;
  const href = `${ROOT}${api(place)}/file?${new URLSearchParams({ path: entry.path })}`;
  return el('a', { class: 'button small', href, download: entry.name, 'data-action': 'download', 'aria-label': `Download ${entry.name}`, 'data-row': true }, icon('down'), 'Download');
}
