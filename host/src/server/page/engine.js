// The engine's state: /metrics once a second while somebody looks, as four small plots.

const HISTORY = 60;
const PLOTS = [
  { id: 'rate', label: 'Tokens/s', digits: 0, value: now => now.rate },
  { id: 'running', label: 'Running', value: now => now.running },
  { id: 'waiting', label: 'Waiting', value: now => now.waiting },
  { id: 'cache', label: 'KV cache', unit: ' %', digits: 1, top: 100, value: now => now.cache * 100 },
];
let before = null;

/** The sum of the samples of a metric, whatever their labels. */
function metric(text, name) {
  let sum = 0;
  for (const line of text.split('\n')) {
    if (line.startsWith(name) && (line[name.length] === '{' || line[name.length] === ' ')) {
      sum += Number(line.slice(line.lastIndexOf(' ')));
    }
  }
  return sum;
}

function buildPlots() {
  for (const plot of PLOTS) {
    plot.values = [];
    plot.number = make('b', {}, '–');
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('viewBox', `0 0 ${HISTORY - 1} 30`);
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.setAttribute('aria-hidden', 'true');
    [plot.area, plot.line] = ['area', 'line'].map(name => {
      const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
      path.setAttribute('class', name);
      svg.append(path);
      return path;
    });
    $('plots').append(make('div', { class: 'plot', id: `plot-${plot.id}` }, make('div', {}, make('span', {}, plot.label), plot.number), svg));
  }
}

function drawPlot(plot, value) {
  plot.values.push(value);
  if (plot.values.length > HISTORY) plot.values.shift();
  plot.number.textContent = number(value, plot.digits ?? 0) + (plot.unit ?? '');
  const top = plot.top ?? Math.max(1, ...plot.values) * 1.1;
  const offset = HISTORY - plot.values.length;
  const points = plot.values.map((v, i) => `${offset + i},${(28.5 - (v / top) * 26).toFixed(2)}`);
  plot.line.setAttribute('d', `M${points.join('L')}`);
  plot.area.setAttribute('d', `M${offset},30L${points.join('L')}L${HISTORY - 1},30Z`);
}

async function look() {
  try {
    const [text] = await Promise.all([request('/metrics').then(reply => reply.text()), request('/health')]);
    const time = performance.now();
    const tokens = metric(text, 'vllm:generation_tokens_total');
    const rate = before ? Math.max(0, (tokens - before.tokens) / ((time - before.time) / 1000)) : 0;
    before = { tokens, time };
    const now = {
      rate,
      running: metric(text, 'vllm:num_requests_running'),
      waiting: metric(text, 'vllm:num_requests_waiting'),
      cache: metric(text, 'vllm:kv_cache_usage_perc'),
    };
    PLOTS.forEach(plot => drawPlot(plot, plot.value(now)));
    const [hits, queries] = ['hits', 'queries'].map(name => metric(text, `vllm:prefix_cache_${name}_total`));
    facts.set('Prefix cache hits', queries ? `${number(hits / queries * 100, 1)} %` : '–');
    facts.set('Memory', `${number(metric(text, 'process_resident_memory_bytes') / 2 ** 20)} MiB`);
    $('pulse').className = 'dot ok';
    $('pulse').title = 'healthy';
  } catch (error) {
    before = null;
    $('pulse').className = 'dot no';
    $('pulse').title = error.message;
  }
  drawFacts();
}

// In this order, whichever is known first.
const facts = new Map(['Context', 'Architecture', 'Plugin', 'Arithmetic', 'Prefix cache hits', 'Memory'].map(name => [name, null]));

function drawFacts() {
  $('facts').replaceChildren(...[...facts].filter(([, value]) => value !== null).flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)]));
}

function watchEngine() {
  buildPlots();
  const tick = async () => {
    if (!document.hidden && $('panel').checkVisibility({ visibilityProperty: true })) await look();
    setTimeout(tick, 1000);
  };
  tick();
}

/** The models, and what is known about the first. */
async function loadModels() {
  const { data } = await request('/v1/models').then(reply => reply.json());
  const wanted = kept.read('model', null);
  $('model').replaceChildren(...data.map(({ id }) => make('option', { selected: id === wanted }, id)));
  const { host, max_model_len } = data[0] ?? {};
  if (max_model_len) facts.set('Context', `${number(max_model_len)} tokens`);
  if (host?.architecture) facts.set('Architecture', host.architecture);
  if (host?.plugin) facts.set('Plugin', `${host.plugin} ${host.plugin_version ?? ''}`);
  if (host?.dtype) facts.set('Arithmetic', host.dtype);
  $('about').textContent = [data[0]?.id, max_model_len && `${number(max_model_len)} tokens of context`].filter(Boolean).join(', ');
  drawFacts();
}
