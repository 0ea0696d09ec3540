// One job: how it goes, what it wrote, what came of it.

import { el } from './dom.js';
import { cancelButton, jobState, jobTitle, runningCard, subject, took, whose } from './jobs.js';
import { icon } from './icons.js';
import { facts, heading, shown, whenInFull } from './parts.js';
import { freshest } from './state.js';

export default {
  title: ({ path }) => `Job ${path[1]}`,
  parts: ({ path }) => ({ job: `/jobs/${encodeURIComponent(path[1])}` }),
  draw({ job }) {
    return shown(job, ({ job: told, log, result }) => drawn(latest(told), log, result));
  },
};

/** What is told of one that still runs is newer in the list; one that ended does not change. */
const latest = (job) => (job.state === 'running' ? freshest(job) : job);

function drawn(job, log, result) {
  const alive = job.state === 'running';
  return [
    el('a', { href: '#/jobs', class: 'back' }, icon('back'), 'Jobs'),
    heading(`${jobTitle(job)} of ${subject(job)}`, jobState(job), alive ? null : cancelButton(job)),
    alive ? runningCard(job) : null,
    job.what ? el('p', { class: job.state === 'failed' ? 'outcome bad' : 'outcome' }, job.what) : null,
    facts([
      job.machine ? [job.group ? 'Machines' : 'Machine', whose(job)] : null,
      ['Asked for by', job.by],
      ['Due', whenInFull(job.due)],
      job.began ? ['Began', whenInFull(job.began)] : null,
      job.ended ? ['Ended', whenInFull(job.ended), ', took ', took(job)] : null,
      job.attempt > 1 || job.retry_at ? ['Attempt', String(job.attempt), job.retry_at ? [', again ', whenInFull(job.retry_at)] : null] : null,
      job.exit !== null ? ['Exit status', String(job.exit)] : null,
      ['Id', el('code', {}, job.id)],
    ]),
    log ? text('What it wrote', log, 'log') : null,
    result ? text('Its result', JSON.stringify(result, null, 2), 'result') : null,
  ];
}

function text(title, content, name) {
  return el('section', { class: 'section', 'data-key': name },
    el('h2', { class: 'section-title' }, title),
    el('pre', { class: 'text', tabindex: '0', 'aria-label': title, 'data-text': name }, content));
}
