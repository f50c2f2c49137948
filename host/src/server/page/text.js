// How an answer looks: a little Markdown, or its tokens with their probabilities.

/** Inline code and bold. */
function inline(parent, text) {
  for (const part of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (part.startsWith('`') && part.length > 2) parent.append(make('code', {}, part.slice(1, -1)));
    else if (part.startsWith('**') && part.length > 4) parent.append(make('strong', {}, part.slice(2, -2)));
    else if (part) parent.append(part);
  }
}

/** Paragraphs, lists and fenced code; what is not closed yet counts as closed. */
function markdown(parent, text) {
  parent.replaceChildren();
  text.split(/^```.*$/m).forEach((part, index) => {
    if (index % 2) return parent.append(make('pre', {}, make('code', {}, part.replace(/^\n|\n$/g, ''))));
    for (const block of part.split(/\n{2,}/)) {
      const lines = block.replace(/^\n+|\n+$/g, '').split('\n');
      if (!lines.join('').trim()) continue;
      const kind = [[/^\s*[-*] +/, 'ul'], [/^\s*\d+[.)] +/, 'ol']].find(([mark]) => lines.every(line => mark.test(line)));
      if (kind) {
        const list = make(kind[1]);
        for (const line of lines) {
          const item = make('li');
          inline(item, line.replace(kind[0], ''));
          list.append(item);
        }
        parent.append(list);
      } else {
        const paragraph = make('p');
        inline(paragraph, lines.join('\n').replace(/^#{1,6} /gm, ''));
        parent.append(paragraph);
      }
    }
  });
}

/** What a token looks like where it is listed. */
const visible = token => token.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/ /g, '␣') || '∅';

/** A token's background: from nothing (certain) to red (unlikely). */
function heat(logprob) {
  const doubt = Math.min(1, -logprob / 4);
  return `color-mix(in srgb, ${doubt < 0.35 ? 'var(--accent)' : '#e0662f'} ${Math.round(doubt * 62)}%, transparent)`;
}

/** A token as an element that tells of its alternatives when pointed at or focused. */
function tokenElement(entry) {
  const element = make('span', { class: entry.mark ? 'tok mark' : 'tok', tabIndex: -1 }, entry.token);
  element.style.background = heat(entry.logprob);
  element.setAttribute('aria-label', `${visible(entry.token)}, ${percent(entry.logprob)}`);
  element.entry = entry;
  return element;
}

const percent = logprob => {
  const value = Math.exp(logprob) * 100;
  return `${value >= 99.95 ? '100' : value < 0.1 ? '<0.1' : value.toFixed(1)} %`;
};

function showTip(element) {
  const { token, logprob, top } = element.entry;
  const rows = top.some(other => other.token === token) ? top : [{ token, logprob }, ...top];
  rows.sort((a, b) => b.logprob - a.logprob);
  $('tip').replaceChildren(...rows.map(other => {
    const bar = make('i');
    bar.style.width = `${Math.exp(other.logprob) * 100}%`;
    return make('div', { class: other.token === token ? 'row chosen' : 'row' }, bar,
      make('span', {}, visible(other.token)), make('span', {}, percent(other.logprob)));
  }));
  $('tip').hidden = false;
  const at = element.getBoundingClientRect();
  const tip = $('tip').getBoundingClientRect();
  const below = at.bottom + 6 + tip.height < innerHeight;
  $('tip').style.top = `${below ? at.bottom + 6 : Math.max(4, at.top - 6 - tip.height)}px`;
  $('tip').style.left = `${Math.max(6, Math.min(at.left, innerWidth - tip.width - 6))}px`;
}

function watchTokens(log) {
  const token = event => event.target.closest?.('.tok');
  const show = event => token(event) && showTip(token(event));
  const hide = () => { $('tip').hidden = true; };
  log.addEventListener('pointerover', event => (token(event) ? show(event) : hide()));
  log.addEventListener('pointerleave', hide);
  log.addEventListener('focusin', show);
  log.addEventListener('focusout', hide);
  $('scroll').addEventListener('scroll', hide, { passive: true });
  // One stop for Tab, arrows within.
  log.addEventListener('keydown', event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !token(event)) return;
    const all = [...token(event).parentElement.querySelectorAll('.tok')];
    const next = all[all.indexOf(token(event)) + step];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
}
