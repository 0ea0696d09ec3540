// What waits for a second person: what it would do, who asked, and the buttons of those who may decide.

import { post, refresh } from './api.js';
import { el } from './dom.js';
import { ask, message } from './dialog.js';
import { capital, exactSpan } from './format.js';
import { verdictShape } from './icons.js';
import { button, due, heading, machineLink, nothing, section, shown, table, when } from './parts.js';
import { hash, may, state } from './state.js';

const PATH = '/approvals';
const SHAPES = { approved: 'protected', refused: 'unprotected' };

/** What somebody says: the word on the button, what is asked before, and what is told after. */
const DECISIONS = {
  approve: { verb: 'Approve', told: 'approved', lines: ({ plan }) => plan },
  refuse: { verb: 'Refuse', told: 'refused', lines: () => ['Nothing of it is done.'] },
  withdraw: { verb: 'Withdraw', told: 'withdrawn', lines: () => ['Nothing of it is done, and nobody is asked any more.'] },
};

export default {
  title: () => 'Approvals',
  parts: () => ({ approvals: PATH }),
  draw({ approvals }) {
    return [
      heading('Approvals'),
      el('p', { class: 'faint' }, rule(state.overview?.approval)),
      shown(approvals, (value) => lists(value.approvals)),
    ];
  },
};

function rule(approval) {
  if (!approval?.asked_for.length) return 'The policies ask for no approval: what is allowed is done at once.';
  return `A second person approves: ${approval.asked_for.join(', ')}. A request waits for ${exactSpan(approval.valid_s)}.`;
}

function lists(all) {
  const waiting = all.filter((one) => one.state === 'waiting');
  const decided = all.filter((one) => one.state !== 'waiting');
  return [
    waiting.length ? el('ul', { class: 'alerts' }, waiting.map(card)) : nothing('Nothing waits for an approval.'),
    decided.length ? section('Decided', 'decided', decidedTable(decided)) : null,
  ];
}

const title = ({ kind, machine }) => `${capital(kind)} of ${machine}`;
const typed = ({ arguments: words }) => el('code', { class: 'faint whole' }, ['keyframe', ...words].join(' '));

function card(one) {
  return el('li', { class: 'alert approval is-warning', 'data-approval': one.id, 'data-key': one.id },
    verdictShape('at-risk'),
    el('div', {},
      el('p', { class: 'alert-what' }, `${capital(one.kind)} of `, machineLink(one.machine)),
      el('p', { class: 'alert-foot' }, one.by, ' asked ', when(one.at), ' · ends ', due(one.until)),
      el('ul', { class: 'plan' }, one.plan.map((line) => el('li', {}, line))),
      typed(one),
      deeds(one)));
}

/** Whoever asked withdraws; others decide, if the deed is theirs to do. */
function deeds(one) {
  const own = state.session?.name === one.by;
  if (own) return el('div', { class: 'actions' }, el('span', { class: 'faint' }, 'You asked: a second person decides.'), decide('withdraw', one));
  if (!may(one.role)) return el('p', { class: 'faint' }, `Somebody with the role ${one.role} decides.`);
  return el('div', { class: 'actions' }, decide('approve', one, { class: 'primary' }), decide('refuse', one));
}

function decide(decision, one, attributes = {}) {
  const { verb, told, lines } = DECISIONS[decision];
  const act = async () => {
    const { approval } = await post(`${PATH}/${encodeURIComponent(one.id)}`, { decision });
    message(`${title(one)} is ${told}`, { href: approval.job ? hash(['jobs', approval.job]) : null });
    refresh(PATH);
  };
  const asked = () => ask({ name: decision, title: `${verb} the ${one.kind} of ${one.machine}?`, verb, danger: decision === 'approve', lines: lines(one), act });
  return button(verb, { ...attributes, 'data-action': decision, 'data-row': true, 'aria-haspopup': 'dialog', 'aria-label': `${verb}: ${title(one)}, for ${one.by}`, onclick: asked });
}

function decidedTable(list) {
  return table('Decided requests', ['Outcome', 'What', 'Asked by', 'Decided by', 'When'], list.map((one) => ({
    'data-approval': one.id, 'data-state': one.state, 'data-key': one.id,
    cells: [
      el('span', { class: `verdict is-${SHAPES[one.state] ?? 'waiting'}` }, SHAPES[one.state] ? verdictShape(SHAPES[one.state]) : null, one.state),
      one.job ? el('a', { href: hash(['jobs', one.job]), class: 'name', 'data-row': true }, title(one)) : title(one),
      one.by, one.decided_by, when(one.decided_at),
    ],
  })));
}
