// Where there is no room for everything at the top: the other views, and who is here.

import { el } from './dom.js';
import { icon } from './icons.js';
import { button, facts, heading } from './parts.js';
import { controls } from './policies.js';
import { help, logOut, ROLE_WORDS, views } from './shell.js';
import { hash, may, state } from './state.js';

export default {
  title: () => 'More',
  draw() {
    const { session, overview } = state;
    return [
      heading('More'),
      el('ul', { class: 'more' }, views().filter((view) => !view.tab).map((view) => el('li', {},
        el('a', { href: hash([view.name]), 'data-row': true }, icon(view.name), view.title)))),
      may('admin') && overview ? controls(overview.paused) : null,
      facts([
        session ? ['You', `${session.name}: ${session.role} may ${ROLE_WORDS[session.role] ?? ''}`] : null,
        overview ? ['Host', overview.host] : null,
        overview ? ['Home', el('code', {}, overview.home)] : null,
        overview ? ['Version', overview.version] : null,
      ]),
      el('div', { class: 'actions' }, button('Keyboard', { 'data-action': 'help', onclick: help }), session?.can_log_out ? button('Log out', { 'data-action': 'log-out', onclick: logOut }) : null),
    ];
  },
};
