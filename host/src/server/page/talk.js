// The conversation: sends it, shows what comes, and stops it.

let mode = kept.read('mode', 'chat');
/** What was said so far, as the API wants it. */
let messages = [];
/** Stops the answer that is coming. */
let running = null;

const CHIPS = {
  chat: ['What is AI?', 'Tell me a short story about a lighthouse.', 'Explain recursion with an example.'],
  completion: ['Once upon a time', 'San Francisco is a', 'The three laws of robotics are'],
};

function setMode(next) {
  mode = next;
  kept.write('mode', mode);
  for (const name of ['chat', 'completion']) {
    $(`tab-${name}`).setAttribute('aria-selected', name === mode);
    $(`tab-${name}`).tabIndex = name === mode ? 0 : -1;
  }
  document.body.classList.toggle('completion', mode === 'completion');
  document.querySelectorAll('[data-mode]').forEach(element => { element.hidden = element.dataset.mode !== mode; });
  $('prompt').placeholder = mode === 'chat' ? 'Message' : 'Text to continue';
  $('greeting').textContent = mode === 'chat' ? 'Ask the model something' : 'Give it a beginning';
  $('chips').replaceChildren(...CHIPS[mode].map(text => {
    const chip = make('button', { type: 'button' }, text);
    chip.addEventListener('click', () => send(text));
    return chip;
  }));
  clearTalk();
}

function clearTalk() {
  running?.abort();
  messages = [];
  $('log').replaceChildren();
  $('empty').hidden = false;
  grow();
}

/** The prompt is as high as its text. */
function grow() {
  const prompt = $('prompt');
  prompt.style.height = 'auto';
  prompt.style.height = `${prompt.scrollHeight}px`;
  $('send').disabled = !prompt.value.trim();
}

function atEnd() {
  const scroll = $('scroll');
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
}

function toEnd() {
  $('scroll').scrollTop = $('scroll').scrollHeight;
}

function setRunning(controller) {
  running = controller;
  $('send').hidden = Boolean(controller);
  $('stop').hidden = !controller;
  if (!controller) $('live').textContent = '';
}

/** An answer on the page. */
class Answer {
  constructor(prompt) {
    this.prompt = prompt;
    this.text = '';
    this.thought = '';
    this.tokens = [];
    this.count = 0;
    this.start = performance.now();
    this.first = null;
    this.said = make('div', { class: 'said' });
    this.foot = make('div', { class: 'foot' });
    this.thinking = make('details', { class: 'thought', hidden: true }, make('summary', {}, 'Thoughts'), make('div'));
    this.element = make('article', { class: prompt === null ? 'turn busy' : 'turn raw busy' }, this.thinking, this.said, this.foot);
    this.draw();
    $('log').append(this.element);
  }

  add({ text, thought, tokens }) {
    if (this.first === null && (text || thought || tokens.length)) this.first = performance.now();
    this.text += text;
    this.thought += thought;
    this.tokens.push(...tokens);
    this.count += 1;
    // As often as the screen changes; many tokens may come in between.
    if (!this.due) this.due = requestAnimationFrame(() => this.draw());
  }

  get rate() {
    const seconds = (performance.now() - (this.first ?? this.start)) / 1000;
    return this.count > 1 ? (this.count - 1) / seconds : 0;
  }

  draw() {
    this.due = null;
    const follow = atEnd();
    if (this.thought) {
      this.thinking.hidden = false;
      this.thinking.lastChild.textContent = this.thought;
    }
    if (this.tokens.length) {
      // Tokens only ever follow; what is there stays.
      if (!this.drawn) this.said.replaceChildren(...(this.prompt === null ? [] : [this.given()]));
      this.said.append(...this.tokens.slice(this.drawn ?? 0).map(tokenElement));
      this.said.style.whiteSpace = 'pre-wrap';
      this.drawn = this.tokens.length;
      const first = this.said.querySelector('.tok');
      if (first) first.tabIndex = 0;
    } else if (this.prompt === null) {
      markdown(this.said, this.text);
    } else {
      this.said.replaceChildren(this.given(), this.text);
    }
    if (running) $('live').textContent = this.count > 1 ? `${number(this.rate, 1)} tokens/s` : '';
    if (follow) toEnd();
  }

  given() {
    return make('span', { class: 'given' }, this.prompt);
  }

  /** What remains to be said about it. */
  end(usage, reason) {
    if (this.due) cancelAnimationFrame(this.due);
    if (usage) this.count = usage.completion_tokens;
    this.draw();
    this.element.classList.remove('busy');
    const copy = make('button', { type: 'button' }, 'Copy');
    copy.addEventListener('click', async () => {
      try { await navigator.clipboard.writeText(this.text); } catch { return; }
      copy.textContent = 'Copied';
      setTimeout(() => { copy.textContent = 'Copy'; }, 1500);
    });
    const again = make('button', { type: 'button' }, 'Again');
    again.addEventListener('click', () => running || this.again());
    const parts = [`${number(this.count)} ${this.count === 1 ? 'token' : 'tokens'}`];
    if (this.count > 1 && this.seconds) parts.push(`${number((this.count - 1) / this.seconds, 1)} tokens/s`);
    if (this.first !== null) parts.push(`first after ${number(this.first - this.start)} ms`);
    parts.push({ length: 'cut at the limit', stop: '', abort: 'stopped' }[reason] ?? reason);
    this.foot.replaceChildren(copy, again, ...parts.filter(Boolean).map(part => make('span', {}, part)));
  }
}

/** What a chunk adds. */
function delta(chunk) {
  const choice = chunk.choices?.[0];
  if (!choice) return null;
  const entries = choice.logprobs?.content?.map(({ token, logprob, top_logprobs }) => ({ token, logprob, top: top_logprobs }))
    ?? choice.logprobs?.tokens?.map((token, i) => ({
      token, logprob: choice.logprobs.token_logprobs[i] ?? 0,
      top: Object.entries(choice.logprobs.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({ token: other, logprob })),
    })) ?? [];
  const said = choice.delta ?? choice;
  const text = said.content ?? said.text ?? '';
  const thought = said.reasoning_content ?? said.reasoning ?? '';
  // The token that ended the answer is not part of its text.
  const last = entries.at(-1);
  if (last && choice.finish_reason === 'stop' && !text.endsWith(last.token)) last.mark = true;
  return { text, thought, tokens: entries, reason: choice.finish_reason };
}

async function answer(body, path, prompt) {
  const controller = new AbortController();
  const view = new Answer(prompt);
  view.again = () => { view.element.remove(); retry(body, path, prompt, view); };
  setRunning(controller);
  toEnd();
  let usage = null;
  let reason = null;
  try {
    for await (const chunk of events(path, body, controller.signal)) {
      usage = chunk.usage ?? usage;
      const news = delta(chunk);
      if (!news) continue;
      reason = news.reason ?? reason;
      if (news.text || news.thought || news.tokens.length) view.add(news);
    }
  } catch (error) {
    if (error.name !== 'AbortError') {
      if (!view.text && !view.thought) view.element.remove();
      else view.end(null, 'broken off');
      showError(error, () => retry(body, path, prompt, view));
      view.failed = true;
    }
    reason = 'abort';
  }
  view.seconds = (performance.now() - (view.first ?? view.start)) / 1000;
  if (!view.failed) view.end(usage, reason ?? 'abort');
  setRunning(null);
  return view;
}

/** Asks the same once more, in place of what was said. */
async function retry(body, path, prompt, old) {
  if (body.messages) {
    messages = [...body.messages];
    while (old.element.isConnected && old.element.nextSibling) old.element.nextSibling.remove();
    old.element.remove();
    // What came later belongs to the old answer.
    const turns = [...$('log').querySelectorAll('.turn')];
    const wanted = messages.filter(message => message.role !== 'system').length;
    turns.slice(wanted).forEach(turn => turn.remove());
  }
  // With the settings as they are now: what was taken back must not be sent again.
  const { stream, stream_options, messages: said, prompt: text } = body;
  const what = said ? { messages: said } : { prompt: text };
  const next = { model: $('model').value, stream, stream_options, ...what, ...sampling(Boolean(said)) };
  const view = await answer(next, path, prompt);
  if (body.messages && !view.failed) messages.push({ role: 'assistant', content: view.text });
}

function showError(error, again) {
  const button = make('button', { type: 'button' }, 'Try again');
  const element = make('div', { class: 'error', role: 'alert' }, make('span', {}, error.message), button);
  button.addEventListener('click', () => {
    element.remove();
    again();
  });
  $('log').append(element);
  toEnd();
}

async function send(text) {
  if (running || !text.trim()) return;
  document.querySelectorAll('.error').forEach(element => element.remove());
  $('empty').hidden = true;
  const shared = { model: $('model').value, stream: true, stream_options: { include_usage: true } };
  if (mode === 'completion') {
    $('log').replaceChildren();
    $('prompt').value = text;
    grow();
    await answer({ ...shared, prompt: text, ...sampling(false) }, '/v1/completions', text);
    return;
  }
  $('prompt').value = '';
  grow();
  if (!messages.length && settings.system) messages.push({ role: 'system', content: settings.system });
  messages.push({ role: 'user', content: text });
  $('log').append(make('article', { class: 'turn user' }, make('div', { class: 'said' }, text)));
  const body = { ...shared, messages: [...messages], ...sampling(true) };
  const view = await answer(body, '/v1/chat/completions', null);
  if (!view.failed) messages.push({ role: 'assistant', content: view.text });
}
