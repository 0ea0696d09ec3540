// Who did what: a chain, in which none can be changed or left out unnoticed.

import { el } from './dom.js';
import { button, heading, nothing, passed, shown, table, trouble, when } from './parts.js';
import { setQuery } from './state.js';

const AT_FIRST = 100;
const AT_MOST = 10000;

export default {
  title: () => 'Audit',
  parts: ({ query }) => ({ audit: `/audit?limit=${limitOf(query)}` }),
  slow: ['audit'],
  draw({ audit }, { query }) {
    return [
      heading('Audit', audit.value ? standing(audit.value.verified) : null),
      shown(audit, ({ entries, flaws }) => [(flaws ?? []).map(flaw), entriesTable(entries, limitOf(query))], 'Verifying the chain'),
    ];
  },
};

const WORDS = ['chain verified', 'the chain is broken: something was changed or left out'];
const standing = (verified) => el('span', { 'data-verified': String(verified) }, passed(verified, WORDS));
const BAD = /^(failed|refused|incomplete|error)/;
const limitOf = ({ limit }) => Math.min(AT_MOST, Number.parseInt(limit, 10) || AT_FIRST);

function flaw(found) {
  return trouble({ message: typeof found === 'string' ? found : found.what ?? JSON.stringify(found) });
}

function entriesTable(entries, limit) {
  if (!entries.length) return nothing('Nothing was changed yet.');
  const newest = [...entries].sort((a, b) => b.n - a.n);
  const heads = [{ text: 'No.', class: 'end' }, 'When', 'Who', 'What', 'Result', 'Hash'];
  const rows = newest.map((entry) => ({
    'data-key': String(entry.n), 'data-entry': entry.n,
    cells: [
      String(entry.n), when(entry.at), entry.who, told(entry),
      el('span', { class: BAD.test(entry.result) ? 'clamp bad' : 'clamp faint', title: entry.result }, entry.result),
      el('code', { class: 'faint whole', title: entry.hash }, entry.hash.slice(0, 12)),
    ],
  }));
  return [table('Audit log', heads, rows, 'audit-table'), entries.length >= limit ? button('Show older ones', { class: 'wide', onclick: () => older(limit) }) : null];
}

/** A command as one would type it: each argument told from the next. */
function told({ what, arguments: words }) {
  if (!words) return what;
  const quoted = words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`));
  return [what, ' ', el('code', { class: 'faint whole' }, ['keyframe', ...quoted].join(' '))];
}

function older(limit) {
  setQuery({ limit: String(limit * 5) });
  dispatchEvent(new HashChangeEvent('hashchange'));
}
