// The server's answers: requests, what was fetched last, and the stream of changes.

import { redraw, state } from './state.js';

const ROOT = '/api/v1';
const CACHED = 60;
const CHANGES_EVERY_MS = 1000;
const CHANGES_EVERY_MANY_MS = 3000;
const MANY_MACHINES = 100;
const POLL_MS = 5000;
const PROGRESS_MS = 1500;
const LOOK_AGAIN_MS = 60000;
const TIMEOUT_MS = 30000;
const SLOW_TIMEOUT_MS = 300000;

class Refused extends Error {
  constructor(status, body) {
    super(body?.error ?? `the server answered ${status}`);
    this.status = status;
    this.advice = body?.advice ?? null;
  }
}

export async function get(path, { slow = false } = {}) {
  return answer(await request(path, { timeout: slow ? SLOW_TIMEOUT_MS : TIMEOUT_MS }));
}

export async function send(method, path, body) {
  const headers = { 'X-Keyframe': '1', 'Content-Type': 'application/json' };
  return answer(await request(path, { method, headers, body: JSON.stringify(body ?? {}), timeout: TIMEOUT_MS }));
}

export const post = (path, body) => send('POST', path, body);

async function request(path, { timeout, ...options }) {
  try {
    const response = await fetch(ROOT + path, { ...options, signal: AbortSignal.timeout(timeout) });
    state.answeredAt = Date.now();
    if (state.connection === 'away') connected(source?.readyState === EventSource.OPEN ? 'live' : 'polling');
    return response;
  } catch (error) {
    const late = error.name === 'TimeoutError';
    if (!late) connected('away');
    throw new Refused(0, {
      error: late ? 'the daemon took too long to answer' : 'the daemon does not answer',
      advice: late ? 'look again in a while' : 'see whether `keyframe serve` runs, and whether the network reaches it',
    });
  }
}

async function answer(response) {
  const text = await response.text();
  const body = parsed(text);
  if (response.status === 401) {
    state.needsLogin = true;
    redraw();
  }
  if (!response.ok) throw new Refused(response.status, body ?? (text ? { error: text.slice(0, 300) } : null));
  return body ?? {};
}

function parsed(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

// What was fetched is shown at once when the reader comes back to it, and fetched again.

const parts = new Map();

export function part(path) {
  if (!parts.has(path)) parts.set(path, { value: null, error: null, at: 0, pending: null });
  return parts.get(path);
}

/** Fetches it, unless it is on its way; `olderThan` leaves alone what is younger than so many ms. */
export function refresh(path, { slow = false, olderThan = 0 } = {}) {
  const kept = part(path);
  if (kept.pending || Date.now() - kept.at < olderThan) return kept.pending;
  kept.pending = get(path, { slow })
    .then((value) => Object.assign(kept, { value, error: null }))
    .catch((error) => Object.assign(kept, { error }))
    .finally(() => {
      Object.assign(kept, { pending: null, at: Date.now() });
      forgetOldest();
      redraw();
    });
  return kept.pending;
}

function forgetOldest() {
  for (const path of parts.keys()) {
    if (parts.size <= CACHED) return;
    if (!parts.get(path).pending) parts.delete(path);
  }
}

// Changes: by events where they come through, otherwise by asking.

let changed = () => {};
let source = null;
let waiting = null;
let lastTold = 0;
let listenedAt = 0;

function connected(how) {
  if (state.connection === how) return;
  state.connection = how;
  redraw();
}

/** Calls `then` whenever something may have changed, never more often than the page can take. */
export function watch(then) {
  changed = then;
  listen();
  setInterval(poll, POLL_MS);
  setInterval(() => tell(), LOOK_AGAIN_MS);
  setInterval(progress, PROGRESS_MS);
  document.addEventListener('visibilitychange', seen);
  addEventListener('pagehide', () => source?.close());
  addEventListener('pageshow', (event) => { if (event.persisted) seen(); });
}

/** A page that nobody sees needs no stream: browsers have few connections for each server, and all of its tabs share them. */
function seen() {
  if (document.hidden) return source?.close();
  listen();
  tell();
}

function listen() {
  source?.close();
  if (state.needsLogin) return;
  listenedAt = Date.now();
  source = new EventSource(`${ROOT}/events`);
  source.onopen = () => {
    connected('live');
    tell();
  };
  source.addEventListener('change', (event) => tell(parsed(event.data)));
  source.onerror = () => { if (state.connection !== 'away') connected('polling'); };
}

export const listenAgain = listen;

function poll() {
  if (state.needsLogin) return;
  if (source?.readyState === EventSource.CLOSED && !document.hidden && Date.now() - listenedAt > LOOK_AGAIN_MS) listen();
  if (state.connection !== 'live') tell();
}

function tell() {
  if (waiting || document.hidden || state.needsLogin) return;
  const many = (state.overview?.machines.length ?? 0) > MANY_MACHINES;
  const every = many ? CHANGES_EVERY_MANY_MS : CHANGES_EVERY_MS;
  waiting = setTimeout(() => {
    waiting = null;
    lastTold = Date.now();
    changed();
  }, Math.max(50, lastTold + every - Date.now()));
}

async function progress() {
  const known = state.overview?.jobs.filter((job) => job.state === 'running') ?? [];
  if (!known.length || document.hidden || state.needsLogin) return;
  try {
    const { jobs } = await get('/jobs?state=running&limit=100');
    const running = new Set(jobs.map((job) => job.id));
    for (const job of jobs) state.live.set(job.id, job);
    if (known.some((job) => !running.has(job.id)) || jobs.length !== known.length) tell();
    redraw();
  } catch {
    // It is told by what is fetched besides.
  }
}
