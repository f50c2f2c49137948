'use strict';
// What the other scripts share: elements, kept settings, requests and their streams. No framework, no network but
// this server.

const $ = id => document.getElementById(id);

/** An element with properties and children. Text is always text: nothing that a model says becomes markup. */
function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in element && typeof value !== 'string') element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Values that outlive the page; without storage (a private window) they live as long as it. */
const kept = {
  read(name, fallback) {
    try { return JSON.parse(localStorage.getItem(`host-${name}`)) ?? fallback; } catch { return fallback; }
  },
  write(name, value) {
    try { localStorage.setItem(`host-${name}`, JSON.stringify(value)); } catch { /* then not */ }
  },
};

function key() {
  try { return sessionStorage.getItem('host-key'); } catch { return null; }
}

/** What went wrong, in the server's words. */
class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sends a request; an answer that is no success becomes a Failure. */
async function request(path, body, signal) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body) headers['Content-Type'] = 'application/json';
  let reply;
  try {
    reply = await fetch(path, { method: body ? 'POST' : 'GET', headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure(0, 'The server cannot be reached.');
  }
  if (reply.ok) return reply;
  const text = await reply.text();
  let message = text || reply.statusText;
  try { message = JSON.parse(text).error.message; } catch { /* then as it is */ }
  if (reply.status === 429) message += ` (try again in ${reply.headers.get('Retry-After') ?? 'a few'} s)`;
  throw new Failure(reply.status, message);
}

/** The events of a stream, parsed. An error in mid-stream is thrown. */
async function* events(path, body, signal) {
  const reply = await request(path, body, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Failure(0, 'The connection broke.');
    }
    if (piece.done) return;
    buffer += piece.value;
    let end;
    while ((end = buffer.indexOf('\n\n')) >= 0) {
      const lines = buffer.slice(0, end).split('\n').filter(line => line.startsWith('data:'));
      buffer = buffer.slice(end + 2);
      const data = lines.map(line => line.slice(5).trimStart()).join('\n');
      if (!data || data === '[DONE]') continue;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(event.error.code, event.error.message);
      yield event;
    }
  }
}

const number = (value, digits = 0) =>
  value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });

// Dark and light: the system's choice until somebody chooses.
const dark = matchMedia('(prefers-color-scheme: dark)');
function paint() {
  document.documentElement.dataset.theme = kept.read('theme', dark.matches ? 'dark' : 'light');
}
dark.addEventListener('change', paint);
paint();
