// What a policy owes a machine, in words.

import { el } from './dom.js';
import { exactSpan, bytes } from './format.js';
import { due, facts, nothing, trouble } from './parts.js';

export function owed(owed, row) {
  if (!owed) return nothing('It is owed nothing: no policy chooses it.', 'Name it, or one of its tags, in a policy; keyframe policy example shows one.');
  return [
    owed.contradicted_by?.length ? trouble({ message: `Policy ${owed.contradicted_by.join(', ')} chooses it with the same priority: ${owed.policy} counts, by its name only` }) : null,
    el('p', {}, 'Policy ', el('strong', {}, owed.policy), ', ', el('code', { class: 'place' }, placeWords(owed.place))),
    facts([
      ['Snapshots', ...snapshots(owed.snapshot)],
      ...backups(owed.backups),
      ['Drills', ...drills(owed.drill)],
      ['Promised', promised(owed.objectives)],
      windows(owed.windows),
      owed.group ? ['Group', `cut together with the machines of ${owed.group}`] : null,
      ['Next', nextWords(row.next)],
    ]),
  ];
}

function placeWords(place) {
  if (typeof place === 'string') return place;
  return place ? `${place.file}:${place.line}` : '';
}

/** A running state is of one instant whatever is frozen; disks alone are not. */
function what({ memory, consistency }) {
  if (memory) return consistency === 'crash' ? 'with the running state' : `with the running state, ${CONSISTENCY[consistency]}`;
  return `disks only, ${CONSISTENCY[consistency] ?? consistency}`;
}

function snapshots(snapshot) {
  if (!snapshot) return ['none'];
  const limit = snapshot.max_pause ? `; a pause of at most ${snapshot.max_pause} ms${snapshot.or_disk_only ? ', otherwise disks only' : ''}` : '';
  return lines(schedule(snapshot), kept(snapshot.keep, snapshot.ttl), `${what(snapshot)}${limit}`);
}

function backups(list) {
  if (!list?.length) return [['Backups', el('span', { class: 'warn' }, 'none: what is on this host only is lost with it')]];
  return list.map((backup) => [`Backup ${backup.name}`, ...lines(
    schedule(backup), el('span', {}, 'to ', el('code', {}, backup.repository)), kept(backup.keep), what(backup),
    [backup.lock_days ? `locked ${backup.lock_days} days` : null, backup.key_file ? 'encrypted' : null, backup.bandwidth ? `at most ${bytes(backup.bandwidth)}/s` : null].filter(Boolean).join(', '))]);
}

function drills(drill) {
  if (!drill) return [el('span', { class: 'warn' }, 'none: nothing proves that it comes back')];
  const targets = drill.what.map((one) => (one === 'snapshot' ? 'the latest snapshot' : `the latest point of ${one.point}`));
  return lines(schedule(drill), `of ${targets.join(', ')}, back within ${exactSpan(drill.within)}`);
}

const lines = (...list) => list.filter(Boolean).map((line) => el('div', {}, line));

function schedule({ schedule, jitter }) {
  return el('span', {}, el('code', {}, schedule), jitter ? `, up to ${exactSpan(jitter)} later` : null);
}

const CONSISTENCY = { crash: 'as after a power cut', 'freeze-if-possible': 'frozen if possible', freeze: 'frozen, or not at all' };

function kept(keep, ttl) {
  const rule = keep?.by ? `kept: ${counted(keep.by)}` : 'all kept';
  return ttl ? `${rule}; none longer than ${exactSpan(ttl)}` : rule;
}

function counted(rule) {
  return ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'].filter((kind) => rule[kind]).map((kind) => `${rule[kind]} ${kind}`).join(', ');
}

function promised({ rpo, rto }) {
  const none = (what) => `no ${what}`;
  return [rpo == null ? none('RPO') : `RPO ${exactSpan(rpo)}`, rto == null ? none('RTO') : `RTO ${exactSpan(rto)}`].join(', ');
}

function windows(windows) {
  const only = windows?.allowed?.length ? `only within ${windows.allowed.join('; ')}` : null;
  const never = windows?.forbidden?.length ? `never within ${windows.forbidden.join('; ')}` : null;
  return only || never ? ['Windows', ...lines(only, never)] : null;
}

function nextWords(next) {
  const list = Object.entries(next).filter(([, at]) => at);
  return list.length ? list.map(([kind, at], n) => [n ? ', ' : null, `${kind} `, due(at)]) : 'nothing';
}
