// Puts the page together: events of buttons and keys.

function openSide(open) {
  $('panel').classList.toggle('open', open);
  $('shade').hidden = !open;
  $('side').setAttribute('aria-expanded', open);
  if (open) $('panel').querySelector('textarea, input').focus({ preventScroll: true });
  else $('side').focus();
}

function start() {
  buildControls();
  watchTokens($('log'));
  setMode(mode);
  watchEngine();
  loadModels().catch(error => {
    $('empty').hidden = true;
    showError(error, () => location.reload());
  });
  $('access').hidden = !key();

  $('composer').addEventListener('submit', event => {
    event.preventDefault();
    send($('prompt').value);
  });
  $('prompt').addEventListener('input', grow);
  $('prompt').addEventListener('keydown', event => {
    // A completion's prompt has many lines: there Enter needs Ctrl.
    const sends = mode === 'chat' ? !event.shiftKey : event.ctrlKey || event.metaKey;
    if (event.key === 'Enter' && sends && !event.isComposing) {
      event.preventDefault();
      send($('prompt').value);
    }
  });
  $('stop').addEventListener('click', () => running?.abort());
  $('new').addEventListener('click', () => {
    clearTalk();
    $('prompt').focus();
  });
  $('model').addEventListener('change', () => kept.write('model', $('model').value));
  for (const name of ['chat', 'completion']) {
    $(`tab-${name}`).addEventListener('click', () => setMode(name));
    $(`tab-${name}`).addEventListener('keydown', event => {
      if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
      setMode(mode === 'chat' ? 'completion' : 'chat');
      $(`tab-${mode}`).focus();
    });
  }
  $('theme').addEventListener('click', () => {
    kept.write('theme', document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark');
    paint();
  });
  $('side').addEventListener('click', () => openSide(!$('panel').classList.contains('open')));
  $('shade').addEventListener('click', () => openSide(false));
  $('forget').addEventListener('click', () => {
    sessionStorage.removeItem('host-key');
    location.reload();
  });
  document.addEventListener('keydown', event => {
    const typing = event.target.matches?.('input, textarea, select');
    if (event.key === 'Escape') {
      if (running) running.abort();
      else if ($('panel').classList.contains('open')) openSide(false);
    } else if (event.key === '/' && !typing) {
      event.preventDefault();
      $('prompt').focus();
    }
  });
  const hint = () => {
    const keys = mode === 'chat' ? ['Enter'] : ['Ctrl', 'Enter'];
    const rest = mode === 'chat' ? [', ', make('kbd', {}, 'Shift'), ' ', make('kbd', {}, 'Enter'), ' breaks the line'] : [];
    document.querySelector('.hint span').replaceChildren(...keys.flatMap(k => [make('kbd', {}, k), ' ']), 'sends', ...rest, ', ', make('kbd', {}, 'Esc'), ' stops');
  };
  document.querySelector('.modes').addEventListener('click', hint);
  document.querySelector('.modes').addEventListener('keydown', hint);
  hint();
  if (matchMedia('(hover: hover)').matches) $('prompt').focus();
}

start();
