// Elements are made here and nowhere else. Text goes in as text nodes: what a server says is never parsed as HTML.

const SVG = 'http://www.w3.org/2000/svg';
const HANDLERS = Symbol('handlers');
const PROPERTIES = new Set(['value', 'checked', 'disabled', 'selected', 'hidden', 'required', 'readOnly']);

/** An element. Attributes that are null or false are left out; `onclick` and the like are handlers, `style` is an object. */
export function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) set(node, name, value);
  append(node, children);
  // A select has its value once its options are there.
  if (node.localName === 'select' && attributes?.value != null) node.value = attributes.value;
  return node;
}

function set(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith('on')) {
    node[name] = value;
    (node[HANDLERS] ??= []).push(name);
  } else if (name === 'style') {
    for (const [property, to] of Object.entries(value)) node.style.setProperty(property, to);
  } else if (PROPERTIES.has(name)) {
    node[name] = value;
  } else {
    node.setAttribute(name, value === true ? '' : String(value));
  }
}

function append(node, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(node, child);
    else node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** A fragment of what `el` takes as children. */
export function several(...children) {
  const fragment = document.createDocumentFragment();
  append(fragment, children);
  return fragment;
}

/** Makes the children of `node` what those of `fresh` are, and keeps every node that may stay: focus and scroll survive. */
export function morphChildren(node, fresh) {
  const keyed = new Map();
  const wantedKeys = new Set([...fresh.children].map((child) => child.dataset.key));
  for (const child of [...node.children]) {
    if (!child.dataset.key) continue;
    if (wantedKeys.has(child.dataset.key)) keyed.set(child.dataset.key, child);
    else child.remove();
  }
  let at = node.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = wanted.dataset?.key;
    const kept = key ? keyed.get(key) : at && !at.dataset?.key ? at : null;
    if (!kept || !alike(kept, wanted)) {
      node.insertBefore(wanted, at);
      continue;
    }
    keyed.delete(key);
    if (kept === at) at = at.nextSibling;
    else node.insertBefore(kept, at);
    morph(kept, wanted);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && a.dataset?.key === b.dataset?.key;
}

function morph(node, fresh) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.data !== fresh.data) node.data = fresh.data;
    return;
  }
  morphAttributes(node, fresh);
  morphHandlers(node, fresh);
  morphChildren(node, fresh);
  morphField(node, fresh);
}

function morphAttributes(node, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (name !== 'style' && node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  for (const { name } of [...node.attributes]) {
    // What a person opened stays open.
    const kept = name === 'style' || (name === 'open' && node.localName === 'details');
    if (!kept && !fresh.hasAttribute(name)) node.removeAttribute(name);
  }
  // Styles go by the object model, which a strict content security policy permits.
  if (node.style && node.style.cssText !== fresh.style.cssText) node.style.cssText = fresh.style.cssText;
}

function morphHandlers(node, fresh) {
  for (const name of node[HANDLERS] ?? []) node[name] = null;
  for (const name of fresh[HANDLERS] ?? []) node[name] = fresh[name];
  node[HANDLERS] = fresh[HANDLERS];
}

function morphField(node, fresh) {
  if (!('value' in node) || !['input', 'select', 'textarea'].includes(node.localName)) return;
  if (node.type === 'checkbox') node.checked = fresh.checked;
  else if (node.value !== fresh.value && document.activeElement !== node) node.value = fresh.value;
}
