// Shapes: a verdict is told by its shape and its word, colour comes on top.

import { svg } from './dom.js';

const VERDICTS = {
  protected: ['M8 1.2 14 3.4v4.4c0 3.4-2.4 5.9-6 7-3.6-1.1-6-3.6-6-7V3.4z', 'M5.2 8 7.2 10 11 6'],
  'at-risk': ['M8 1.4 15.2 14.2H.8z', 'M8 6v4M8 12v.4'],
  unprotected: ['M5.1 1.2h5.8l3.9 3.9v5.8l-3.9 3.9H5.1l-3.9-3.9V5.1z', 'M5.6 5.6l4.8 4.8M10.4 5.6l-4.8 4.8'],
};

const STROKES = {
  running: 'M4 2.5v11l9-5.5z',
  paused: 'M5 3v10M11 3v10',
  stopped: 'M3.5 3.5h9v9h-9z',
  crashed: 'M3 3l10 10M13 3L3 13',
  unknown: 'M5.4 5.6a2.6 2.6 0 1 1 3.8 2.3c-.8.5-1.2.9-1.2 1.8M8 12.4v.4',
  machines: 'M2 3h12v4H2zM2 9h12v4H2zM4.5 5h.1M4.5 11h.1',
  jobs: 'M13.5 8a5.5 5.5 0 1 1-1.6-3.9M13.6 1.8v2.8h-2.8',
  drills: 'M3 8.4 6.4 12 13 4.4',
  alerts: 'M8 2a4 4 0 0 1 4 4v3l1.5 2.5h-11L4 9V6a4 4 0 0 1 4-4zM6.6 13.6a1.6 1.6 0 0 0 2.8 0',
  space: 'M2 4.2c0-2.6 12-2.6 12 0v7.6c0 2.6-12 2.6-12 0zM2 4.2c0 2.6 12 2.6 12 0M2 8c0 2.6 12 2.6 12 0',
  policies: 'M3.5 1.8h6.6l2.4 2.4v10h-9zM6 6.5h4M6 9h4M6 11.5h2.5',
  approvals: 'M5 3.4a2.2 2.2 0 1 1 0 4.4a2.2 2.2 0 1 1 0-4.4zM1.4 13.2c0-4.6 7.2-4.6 7.2 0M9.6 8.2l1.8 1.8 3.2-3.6',
  audit: 'M2.5 3.5h11M2.5 8h11M2.5 12.5h7',
  more: 'M3 8h.1M8 8h.1M13 8h.1',
  search: 'M7 2.2a4.8 4.8 0 1 1 0 9.6 4.8 4.8 0 0 1 0-9.6zM10.6 10.6 14 14',
  pin: 'M5.5 2h5l-.6 4.4L12 9H4l2.1-2.6zM8 9v5',
  lock: 'M3.8 7.2h8.4v6.6H3.8zM5.4 7V5a2.6 2.6 0 0 1 5.2 0v2',
  fork: 'M4 2.5v11M4 9c5 0 8-1 8-5.5M10 5l2-2 2 2',
  directory: 'M1.8 3.4h4.4l1.4 1.8h6.6v7.6H1.8z',
  file: 'M4 1.8h5.4L12 4.4v9.8H4z',
  link: 'M6.6 9.4l2.8-2.8M7 4.6l1.2-1.2a3 3 0 0 1 4.4 4.4L11.4 9M9 11.4l-1.2 1.2a3 3 0 0 1-4.4-4.4L4.6 7',
  disk: 'M1.8 4.5h12.4v7H1.8zM11 8h.6',
  down: 'M8 2.5v8M4.6 7.4 8 10.8l3.4-3.4M2.5 13.5h11',
  back: 'M9.5 3 4.5 8l5 5',
  close: 'M3.5 3.5l9 9M12.5 3.5l-9 9',
};

/** The shield, triangle or octagon of a verdict, without its word. */
export function verdictShape(verdict) {
  const [outline, mark] = VERDICTS[verdict] ?? VERDICTS.unprotected;
  return svg('svg', { viewBox: '0 0 16 16', class: 'shape', 'aria-hidden': 'true' },
    svg('path', { d: outline, class: 'shape-body' }), svg('path', { d: mark, class: 'shape-mark' }));
}

export function icon(name, more = '') {
  return svg('svg', { viewBox: '0 0 16 16', class: `icon icon-${name} ${more}`.trim(), 'aria-hidden': 'true' },
    svg('path', { d: STROKES[name] ?? STROKES.unknown }));
}

export function mark() {
  return svg('svg', { viewBox: '0 0 32 32', class: 'mark', 'aria-hidden': 'true' },
    svg('rect', { width: 32, height: 32, rx: 7, class: 'mark-ground' }),
    svg('path', { d: 'M16 5.5 26.5 16 16 26.5 5.5 16z', class: 'mark-outline' }),
    svg('path', { d: 'M16 11.5 20.5 16 16 20.5 11.5 16z', class: 'mark-core' }));
}
