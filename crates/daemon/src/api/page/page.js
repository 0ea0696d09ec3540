// The dashboard: which view is shown, when it is fetched, when it is drawn.

import { get, listenAgain, part, refresh, watch } from './api.js';
import { openAction, tellEnds, allowed } from './actions.js';
import { el, morphChildren, several } from './dom.js';
import { heading, loading, nothing, tickTimes, trouble, WORDS } from './parts.js';
import { drawLogin } from './login.js';
import { drawShell, help, views } from './shell.js';
import { announce, hash, onAnnounce, onRedraw, redraw, route, state } from './state.js';
import alerts from './alerts.js';
import machines from './machines.js';

const TICK_MS = 5000;
const SLOW_AGAIN_MS = 30000;
const CHORD_MS = 1500;

/** Views that are there; the others are fetched when the first one is drawn, or sooner if they are asked for. */
const loaded = { machines, alerts };
const LATER = ['machine', 'jobs', 'job', 'drills', 'space', 'policies', 'approvals', 'audit', 'files', 'more'];
const main = document.getElementById('main');

function nameOf({ path: [first = 'machines', second, third] }) {
  if (first === 'machines' && third === 'points') return 'files';
  if (second !== undefined && ['machines', 'jobs'].includes(first)) return first.slice(0, -1);
  return first;
}

/** The view of a route. `parts` are paths of the API; those named in `slow` are not asked for at each change. */
function viewOf(at) {
  const name = nameOf(at);
  if (Object.hasOwn(loaded, name)) return loaded[name];
  if (!LATER.includes(name)) return lost;
  load(name).then(moved);
  return coming;
}

/** A view that cannot be fetched says so. */
async function load(name) {
  try {
    loaded[name] ??= (await import(`./${name}.js`)).default;
  } catch {
    loaded[name] = { title: () => name, draw: () => trouble({ message: 'This page could not be fetched.', advice: 'load it again when the daemon answers' }) };
  }
}

const coming = { title: () => 'Keyframe', draw: () => loading() };

const lost = {
  title: () => 'Not found',
  draw: () => [heading('There is no such page'), nothing('Perhaps the address was cut short.'), el('a', { href: '#/machines' }, 'To the machines')],
};

function partsOf(view, at) {
  return Object.entries(view.parts?.(at) ?? {});
}

/** Fetches what the view shows. What is slow is not fetched again so soon, unless the reader just came. */
function fetchView() {
  const at = route();
  const view = viewOf(at);
  for (const [name, path] of partsOf(view, at)) {
    const slow = view.slow?.includes(name) ?? false;
    refresh(path, { slow, olderThan: slow ? SLOW_AGAIN_MS : 0 });
  }
}

async function fetchOverview() {
  try {
    overviewIs(await get('/overview'));
  } catch (error) {
    state.overviewError = error;
  }
  redraw();
}

function overviewIs(overview) {
  const before = state.overview;
  state.skew = Date.parse(overview.now) - Date.now() || 0;
  Object.assign(state, { overview, overviewError: null });
  state.live.clear();
  for (const job of overview.jobs) state.live.set(job.id, job);
  tellEnds(overview.jobs);
  if (before) announceChanges(before, overview);
}

function announceChanges(before, after) {
  const verdicts = new Map(before.machines.map((row) => [row.name, row.verdict]));
  const changed = after.machines.filter((row) => verdicts.has(row.name) && verdicts.get(row.name) !== row.verdict);
  if (changed.length > 3) announce(`${changed.length} machines have another verdict`);
  else for (const row of changed) announce(`${row.name} is ${WORDS[row.verdict]}`);
  const alerts = after.alerts.filter((alert) => !before.alerts.some((known) => known.id === alert.id));
  for (const alert of alerts.slice(0, 3)) announce(`${alert.severity} alert: ${alert.machine ? `${alert.machine}: ` : ''}${alert.what}`);
}

let drawnFor = null;

function draw() {
  drawShell();
  if (state.needsLogin) return drawLoginAlone();
  const at = route();
  const view = viewOf(at);
  const data = Object.fromEntries(partsOf(view, at).map(([name, path]) => [name, part(path)]));
  drawMain(`${location.hash.split('?')[0]}`, view.title(at), () => view.draw(data, at));
}

/** A session may end while a dialog is open. */
function drawLoginAlone() {
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  drawMain('login', 'Log in', () => drawLogin(start));
}

/** Another page begins at its top, with an empty stage; the same page keeps what may stay. */
function drawMain(key, title, content) {
  const fresh = several(content());
  const first = drawnFor === null;
  const another = drawnFor !== key;
  if (another) main.replaceChildren(fresh);
  else morphChildren(main, fresh);
  drawnFor = key;
  main.setAttribute('aria-busy', 'false');
  document.title = `${title} · Keyframe${state.overview ? ` on ${state.overview.host}` : ''}`;
  if (!another || (first && key !== 'login')) return;
  scrollTo(0, 0);
  (main.querySelector('[data-first]') ?? main.querySelector('h1') ?? main).focus({ preventScroll: true });
}

function moved() {
  if (!location.hash) history.replaceState(null, '', '#/machines');
  if (!state.needsLogin) fetchView();
  redraw();
}

async function start() {
  try {
    state.session = await get('/session');
    state.needsLogin = Boolean(state.session.needs_login);
  } catch (error) {
    if (error.status !== 401) state.overviewError = error;
  }
  if (state.needsLogin) return redraw();
  listenAgain();
  await fetchOverview();
  moved();
}

// By keyboard.

const typing = (node) => node.closest('input, select, textarea, dialog') !== null;
let chord = 0;

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || state.needsLogin) return;
  if (event.key === 'Escape') return escape(event);
  if (event.key === 'ArrowDown' || event.key === 'ArrowUp') return step(event);
  if (typing(event.target)) return;
  const done = Date.now() < chord ? goTo(event.key) : single(event.key);
  if (done) event.preventDefault();
}

function single(key) {
  if (key === 'g') chord = Date.now() + CHORD_MS;
  else if (key === '?') help();
  else if (key === '/') search();
  else if (key === 's' && nameOf(route()) === 'machine' && allowed('snapshot')) openAction('snapshot', route().path[1]);
  else return false;
  return true;
}

function goTo(key) {
  chord = 0;
  const view = views().find((view) => view.key === key);
  if (view) location.hash = hash([view.name]);
  return Boolean(view);
}

function search() {
  const field = () => main.querySelector('input[type=search]');
  if (field()) return field().focus();
  location.hash = '#/machines';
  addEventListener('hashchange', () => field()?.focus(), { once: true });
}

function escape(event) {
  if (document.querySelector('dialog[open]')) return;
  if (event.target.type === 'search') {
    event.target.value = '';
    event.target.dispatchEvent(new Event('input'));
    event.target.blur();
    return;
  }
  const { path } = route();
  if (path.length > 1) location.hash = hash(path.slice(0, path[2] === 'points' ? 2 : -1));
}

/** From one row's link to the next one's; from the search to the first. */
function step(event) {
  const links = [...main.querySelectorAll('[data-row]')];
  const at = links.indexOf(document.activeElement);
  const fromSearch = event.target.type === 'search' && event.key === 'ArrowDown';
  if (at < 0 && !fromSearch) return;
  const next = links[fromSearch ? 0 : at + (event.key === 'ArrowDown' ? 1 : -1)];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function say(text) {
  const said = document.getElementById('said');
  said.replaceChildren(el('p', {}, text));
}

onRedraw(draw);
onAnnounce(say);
addEventListener('hashchange', moved);
addEventListener('keydown', pressed);
document.getElementById('skip').onclick = (event) => {
  event.preventDefault();
  main.focus();
};
setInterval(() => tickTimes(main), TICK_MS);

const session = get('/session').catch((error) => ({ error }));
const overview = get('/overview').catch((error) => ({ error }));
if (location.hash && location.hash !== '#/machines') moved();
const known = await session;
if (known.error) state.overviewError = known.error.status === 401 ? null : known.error;
else {
  state.session = known;
  state.needsLogin = Boolean(known.needs_login);
}
const first = await overview;
if (!first.error) overviewIs(first);
else if (!state.needsLogin) state.overviewError = first.error;
moved();
watch(() => {
  fetchOverview();
  fetchView();
});

for (const name of LATER) await load(name);
