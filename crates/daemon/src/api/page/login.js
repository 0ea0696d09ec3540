// Who comes over the network shows a token once; a cookie that scripts cannot read stands for it afterwards.

import { post } from './api.js';
import { el } from './dom.js';
import { mark } from './icons.js';
import { trouble } from './parts.js';
import { redraw } from './state.js';

const is = { busy: false, error: null };

export function drawLogin(loggedIn) {
  return el('form', { class: 'login', 'data-dialog': 'login', onsubmit: (event) => logIn(event, loggedIn) },
    mark(),
    el('h1', {}, 'Keyframe'),
    el('input', { type: 'text', name: 'user', autocomplete: 'username', value: 'keyframe', readOnly: true, hidden: true }),
    el('label', { for: 'token' }, 'Token'),
    el('input', { id: 'token', name: 'token', type: 'password', autocomplete: 'current-password', required: true, 'data-first': true, spellcheck: 'false' }),
    el('button', { type: 'submit', class: 'button primary', 'data-action': 'log-in', disabled: is.busy }, 'Log in'),
    is.error ? trouble(is.error) : null,
    el('p', { class: 'faint' }, 'Whoever runs this daemon hands out tokens. On the host itself no token is needed: its socket knows who asks.'));
}

async function logIn(event, loggedIn) {
  event.preventDefault();
  const field = event.target.elements.token;
  const token = field.value.trim();
  if (!token || is.busy) return;
  Object.assign(is, { busy: true, error: null });
  redraw();
  try {
    await post('/session', { token });
    field.value = '';
    is.busy = false;
    await loggedIn();
  } catch (error) {
    Object.assign(is, { busy: false, error: error.status === 401 ? { message: 'this token is not known, or was revoked', advice: null } : error });
    field.select();
    redraw();
  }
}
