// What is known, where the reader is, and who is told when either changes.

const ROLES = ['read', 'operate', 'restore', 'admin'];

export const state = {
  session: null,
  needsLogin: false,
  overview: null,
  overviewError: null,
  /** Jobs as last told, by id: newer than what lists were fetched with. */
  live: new Map(),
  /** Jobs that this page began, to tell what came of them. */
  ours: new Set(),
  /** "starting", "live" (events), "polling", "away". */
  connection: 'starting',
  answeredAt: null,
  /** The server's clock less ours, in ms. */
  skew: 0,
};

export const now = () => Date.now() + state.skew;

export function may(role) {
  return ROLES.indexOf(state.session?.role) >= ROLES.indexOf(role);
}

export function freshest(job) {
  return state.live.get(job.id) ?? job;
}

let redrawer = () => {};
let asked = false;

export function onRedraw(draw) {
  redrawer = draw;
}

/** Draws again, once however often it is asked for meanwhile. */
export function redraw() {
  if (asked) return;
  asked = true;
  queueMicrotask(() => {
    asked = false;
    redrawer();
  });
}

/** `#/machines/db?x=y` is { path: ["machines", "db"], query: { x: "y" } }. */
function parseHash(hash) {
  const [path, query] = hash.replace(/^#\/?/, '').split('?', 2);
  const parts = path.split('/').filter(Boolean).map(decoded);
  return { path: parts, query: Object.fromEntries(new URLSearchParams(query ?? '')) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function hash(path, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== '');
  const search = kept.length ? `?${new URLSearchParams(kept)}` : '';
  return `#/${path.map(encodeURIComponent).join('/')}${search}`;
}

export const route = () => parseHash(location.hash);

/** Changes the query of where the reader is: a link to here shows the same, and the way back is not full of it. */
export function setQuery(change) {
  const { path, query } = route();
  history.replaceState(null, '', hash(path, { ...query, ...change }));
  redraw();
}

let announcer = () => {};
export const onAnnounce = (say) => { announcer = say; };
/** Says it to those who hear the page. */
export const announce = (text) => announcer(text);
