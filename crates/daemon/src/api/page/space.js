// Space: what is free, where that leads, who takes it.

import { el } from './dom.js';
import { bytes, capital, count } from './format.js';
import { chartFoot, forecastWords, isFullSoon, spaceChart } from './chart.js';
import { heading, loading, machineLink, section, size, table, trouble } from './parts.js';
import { state } from './state.js';

const MACHINES_SHOWN = 50;

export default {
  title: () => 'Space',
  draw() {
    const overview = state.overview;
    if (!overview) return state.overviewError ? trouble(state.overviewError) : loading();
    const { disk, home } = overview;
    return [
      heading('Space', el('code', { class: 'faint' }, home)),
      el('div', { class: 'space-words' },
        el('p', { class: 'figure' }, el('span', {}, bytes(disk.free_bytes)), el('span', { class: 'figure-words' }, `free of ${bytes(disk.total_bytes)}`)),
        el('p', { class: isFullSoon(disk) ? 'bad' : '' }, capital(forecastWords(disk)))),
      chart(disk),
      section('Snapshots of machines', 'takers', takers(overview.machines)),
    ];
  },
};

/** Nothing where there is no past to draw. */
function chart(disk) {
  const drawn = spaceChart(disk, 180);
  return drawn && el('figure', { class: 'card chart-box' }, drawn, chartFoot(disk));
}

function takers(machines) {
  const sorted = [...machines].sort((a, b) => (b.snapshots_bytes ?? 0) - (a.snapshots_bytes ?? 0));
  const most = sorted[0]?.snapshots_bytes || 1;
  const all = sorted.reduce((sum, row) => sum + (row.snapshots_bytes ?? 0), 0);
  const snapshots = sorted.reduce((sum, row) => sum + row.snapshots, 0);
  const rows = sorted.slice(0, MACHINES_SHOWN).map((row) => ({
    'data-key': row.name,
    cells: [machineLink(row.name), String(row.snapshots), size(row.snapshots_bytes), bar((row.snapshots_bytes ?? 0) / most)],
  }));
  return [
    el('p', { class: 'faint' }, `${bytes(all)} in ${count(snapshots, 'snapshot')}${sorted.length > MACHINES_SHOWN ? `; the ${MACHINES_SHOWN} largest are shown` : ''}`),
    table('Space of snapshots', ['Machine', { text: 'Snapshots', class: 'end' }, { text: 'Size', class: 'end' }, { text: '', class: 'bar-cell' }], rows, 'space-table'),
  ];
}

const bar = (share) => el('span', { class: 'bar', 'aria-hidden': 'true' }, el('span', { class: 'bar-fill', style: { width: `${(share * 100).toFixed(1)}%` } }));
