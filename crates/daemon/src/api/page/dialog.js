// Dialogs and messages. A dialog is the browser's own: it keeps the focus, Escape closes it, the focus goes back.

import { el, morphChildren, several } from './dom.js';
import { button, trouble } from './parts.js';
import { icon } from './icons.js';
import { announce } from './state.js';

const MESSAGE_MS = 9000;

let numbers = 0;

/** Opens a dialog that `draw(dialog)` draws, again at each `dialog.redraw()`. */
export function openDialog(name, title, draw, { wide = false, closed = () => {} } = {}) {
  const id = `dialog-${(numbers += 1)}`;
  const body = el('div', { class: 'dialog-body' });
  const node = el('dialog', { 'data-dialog': name, 'aria-labelledby': id, class: wide ? 'dialog wide' : 'dialog' },
    el('header', { class: 'dialog-head' },
      el('h2', { id }, title),
      el('button', { type: 'button', class: 'button quiet', 'aria-label': 'Close', 'data-action': 'close', onclick: () => node.close() }, icon('close'))),
    body);
  const dialog = {
    node,
    close: () => node.close(),
    redraw: () => morphChildren(body, several(draw(dialog))),
  };
  node.onclose = () => {
    node.remove();
    closed();
  };
  node.onmousedown = (event) => { if (event.target === node) node.close(); };
  document.body.append(node);
  dialog.redraw();
  node.showModal();
  (body.querySelector('[data-first]') ?? body.querySelector('input, select, textarea, button'))?.focus();
  return dialog;
}

/** Asks before something is done; tells why when it could not be. */
export function ask({ name, title, lines, verb, danger = false, act }) {
  const is = { busy: false, error: null };
  openDialog(name, title, (dialog) => [
    el('ul', { class: 'plan' }, lines.map((line) => el('li', {}, line))),
    is.error ? trouble(is.error) : null,
    buttons(dialog, verb, { danger, first: danger ? 'dismiss' : 'confirm', disabled: is.busy, confirm: () => carryOut(dialog, is, act) }),
  ]);
}

async function carryOut(dialog, is, act) {
  Object.assign(is, { busy: true, error: null });
  dialog.redraw();
  try {
    await act();
    dialog.close();
  } catch (error) {
    Object.assign(is, { busy: false, error });
    dialog.redraw();
  }
}

/** The row of buttons that ends a dialog; `first` has the focus. What cannot be undone is not what Enter does at once. */
export function buttons(dialog, verb, { danger = false, first = null, disabled = false, confirm }) {
  return el('div', { class: 'dialog-buttons' },
    button('Cancel', { 'data-action': 'dismiss', 'data-first': first === 'dismiss', onclick: dialog.close }),
    button(verb, { class: danger ? 'danger' : 'primary', 'data-action': 'confirm', 'data-first': first === 'confirm', disabled, onclick: confirm }));
}

/** A message that goes by itself, except one of a failure. */
export function message(text, { href = null, failed = false } = {}) {
  const node = el('div', { class: failed ? 'toast failed' : 'toast', 'data-toast': failed ? 'failed' : 'done' },
    el('span', {}, text),
    href ? el('a', { href, onclick: () => node.remove() }, 'Look') : null,
    el('button', { type: 'button', class: 'button quiet', 'aria-label': 'Dismiss', onclick: () => node.remove() }, icon('close')));
  document.getElementById('toasts').append(node);
  announce(text);
  if (!failed) setTimeout(() => node.remove(), MESSAGE_MS);
}
