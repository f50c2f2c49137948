// Sampling controls. A control that was not touched sends nothing: the server's and the model's defaults hold.

const CONTROLS = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 2, step: 0.05, show: 1 },
  { name: 'top_p', label: 'Top p', min: 0.05, max: 1, step: 0.01, show: 1 },
  { name: 'top_k', label: 'Top k', min: 0, max: 200, step: 1, show: 0, note: '0: all' },
  { name: 'min_p', label: 'Min p', min: 0, max: 1, step: 0.01, show: 0 },
  { name: 'repetition_penalty', label: 'Repetition penalty', min: 0.5, max: 2, step: 0.01, show: 1 },
  { name: 'presence_penalty', label: 'Presence penalty', min: -2, max: 2, step: 0.05, show: 0 },
  { name: 'frequency_penalty', label: 'Frequency penalty', min: -2, max: 2, step: 0.05, show: 0 },
  { name: 'max_tokens', label: 'Most tokens', min: 1, step: 1, placeholder: 'what fits', range: false },
  { name: 'seed', label: 'Seed', min: 0, step: 1, placeholder: 'random', range: false },
];

const settings = kept.read('settings', {});
const ALTERNATIVES = 5;

function saveSettings() {
  kept.write('settings', settings);
  $('reset').hidden = !Object.keys(settings).length;
}

function buildControls() {
  for (const control of CONTROLS) {
    const { name, label, min, max, step } = control;
    const id = `set-${name}`;
    const box = make('input', { type: 'number', id, min: `${min}`, step: 'any', placeholder: control.placeholder ?? 'auto', inputMode: 'decimal' });
    if (max !== undefined && name !== 'top_k') box.max = max;
    const title = make('label', { for: id }, label);
    if (control.note) title.append(make('span', { class: 'muted' }, ` ${control.note}`));
    const field = make('div', { class: control.range === false ? 'field plain' : 'field' }, title);
    let range = null;
    if (control.range !== false) {
      range = make('input', { type: 'range', min: `${min}`, max: `${max}`, step: `${step}`, 'aria-label': label, tabIndex: -1 });
      field.append(range);
    }
    field.append(box);
    const show = () => {
      box.value = settings[name] ?? '';
      if (range) range.value = settings[name] ?? control.show;
      field.classList.toggle('default', settings[name] === undefined);
    };
    const set = text => {
      if (text === '' || !box.checkValidity()) delete settings[name];
      else settings[name] = Number(text);
      field.classList.toggle('default', settings[name] === undefined);
      saveSettings();
    };
    box.addEventListener('input', () => {
      set(box.value);
      if (range) range.value = settings[name] ?? control.show;
    });
    range?.addEventListener('input', () => {
      box.value = range.value;
      set(range.value);
    });
    control.refresh = show;
    $('controls').append(field);
    show();
  }
  for (const [id, name] of [['system', 'system'], ['stops', 'stops']]) {
    $(id).value = settings[name] ?? '';
    $(id).addEventListener('input', () => {
      if ($(id).value) settings[name] = $(id).value;
      else delete settings[name];
      saveSettings();
    });
  }
  $('logprobs').checked = settings.logprobs ?? false;
  $('logprobs').addEventListener('change', () => {
    if ($('logprobs').checked) settings.logprobs = true;
    else delete settings.logprobs;
    saveSettings();
  });
  $('reset').addEventListener('click', () => {
    Object.keys(settings).forEach(name => delete settings[name]);
    CONTROLS.forEach(control => control.refresh());
    $('system').value = $('stops').value = '';
    $('logprobs').checked = false;
    saveSettings();
  });
  saveSettings();
}

/** The request's fields that the controls decide. */
function sampling(chat) {
  const body = {};
  for (const { name } of CONTROLS) if (settings[name] !== undefined) body[name] = settings[name];
  const stops = (settings.stops ?? '').split('\n').filter(Boolean);
  if (stops.length) body.stop = stops;
  if (settings.logprobs && chat) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  if (settings.logprobs && !chat) body.logprobs = ALTERNATIVES;
  if (!chat && body.max_tokens === undefined) body.max_tokens = 128;
  return body;
}
