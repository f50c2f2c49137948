// Asks for the key and loads the page with it. The page replaces this one, so that its address stays `/`.
'use strict';
{
  const form = document.getElementById('signin');
  const wrong = document.getElementById('wrong');
  const enter = async key => {
    const reply = await fetch('/', { headers: { Authorization: `Bearer ${key}` } });
    if (!reply.ok) return false;
    sessionStorage.setItem('host-key', key);
    const html = await reply.text();
    document.open();
    document.write(html);
    document.close();
    return true;
  };
  form.addEventListener('submit', async event => {
    event.preventDefault();
    const key = document.getElementById('key').value.trim();
    try {
      if (await enter(key)) return;
      wrong.textContent = 'The server does not know this key.';
    } catch {
      wrong.textContent = 'The server cannot be reached.';
    }
    wrong.className = 'bad';
  });
  const kept = sessionStorage.getItem('host-key');
  if (kept) enter(kept).then(fine => fine || sessionStorage.removeItem('host-key')).catch(() => {});
}
