// The page at `/` in a headless Chromium, against the real program with the demo model.
//
//   npm install --prefix DIR playwright-core && apt-get install chromium
//   HOST_BIN=target/debug/host NODE_PATH=DIR/node_modules node --test tests/browser/
//
// CHROMIUM names the browser if it is not /usr/bin/chromium; SHOTS a folder that gets pictures.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

// NODE_PATH holds for require only.
const { chromium } = createRequire(import.meta.url)('playwright-core');

const PATIENCE = 60_000;
const servers = [];
let browser;
let url;

/** Starts the program on a free port; resolves to its address. */
function serve(...flags) {
  const server = spawn(process.env.HOST_BIN ?? 'target/debug/host', ['serve', '--port', '0', ...flags], { stdio: ['ignore', 'ignore', 'pipe'] });
  servers.push(server);
  return new Promise((resolve, reject) => {
    let log = '';
    server.stderr.on('data', data => {
      log += data;
      const address = log.match(/serving .* on (http:\S+)\/v1/);
      if (address) resolve(address[1]);
    });
    server.on('exit', () => reject(new Error(`the server ended:\n${log}`)));
  });
}

before(async () => {
  const flags = ['--no-sandbox']; // it runs as root in CI
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: flags });
  url = await serve();
});

after(async () => {
  await browser?.close();
  for (const server of servers) {
    server.removeAllListeners('exit');
    server.kill('SIGKILL');
  }
});

/** A fresh page. Whatever it complains about fails the test at `close`. */
async function open(options = {}, address = url) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const complaints = [];
  page.on('pageerror', error => complaints.push(error.message));
  page.on('console', message => {
    // Answers that refuse are part of the tests.
    if (message.type() === 'error' && !message.text().startsWith('Failed to load resource')) complaints.push(message.text());
  });
  page.on('request', request => {
    if (!request.url().startsWith(address) && !request.url().startsWith('data:')) complaints.push(`asked ${request.url()}`);
  });
  await page.goto(address);
  page.done = async name => {
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/${name}.png` });
    await context.close();
    assert.deepEqual(complaints, []);
  };
  return page;
}

async function send(page, text) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
}

const finished = page => page.locator('.turn:last-child .foot span').first().waitFor();

/** Lets answers go on for long, so that there is time to interfere. */
const makeEndless = page => page.route('**/v1/chat/completions', route => {
  const body = { ...route.request().postDataJSON(), ignore_eos: true, max_tokens: 900 };
  return route.continue({ postData: JSON.stringify(body) });
});

test('it loads, names the model, and asks nobody else', async () => {
  const page = await open();
  assert.equal(await page.locator('#model option').first().textContent(), 'host-demo');
  await page.locator('#about', { hasText: 'tokens of context' }).waitFor();
  await page.locator('.dot.ok').waitFor();
  assert.equal(await page.locator('.plot').count(), 4);
  await page.done('loads');
});

test('an answer is streamed, and its speed is told', async () => {
  const page = await open();
  await makeEndless(page);
  await send(page, 'What is AI?');
  const said = page.locator('.turn.busy .said');
  await said.locator('p').first().waitFor();
  const early = (await said.textContent()).length;
  await page.waitForFunction(length => document.querySelector('.turn.busy .said').textContent.length > length + 20, early);
  await page.locator('#live', { hasText: 'tokens/s' }).waitFor();
  // The engine's panel sees the same.
  await page.waitForFunction(() => Number(document.querySelector('#plot-rate b').textContent.replace(',', '')) > 0);
  assert.match(await page.locator('#plot-running path.line').getAttribute('d'), /^M\d/);
  await page.click('#stop');
  await finished(page);
  assert.match(await page.locator('.foot').textContent(), /\d+ tokens.*tokens\/s.*first after \d+.*ms.*stopped/);
  await page.done('streams');
});

test('Escape stops the answer, here and in the engine', async () => {
  const page = await open();
  await makeEndless(page);
  await send(page, 'What is AI?');
  await page.locator('.turn.busy .said p').first().waitFor();
  await page.keyboard.press('Escape');
  await page.locator('.foot', { hasText: 'stopped' }).waitFor();
  assert.equal(await page.locator('#send').isVisible(), true);
  for (const start = Date.now(); ;) {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    if (/vllm:num_requests_running\{[^}]*\} 0/.test(metrics)) break;
    assert.ok(Date.now() - start < PATIENCE, 'the engine goes on');
  }
  await page.done('stops');
});

test('a conversation goes on, and a question can be asked again', async () => {
  const page = await open();
  await send(page, 'What is AI?');
  await finished(page);
  const [request] = await Promise.all([page.waitForRequest('**/v1/chat/completions'), send(page, 'Why?')]);
  assert.deepEqual(request.postDataJSON().messages.map(message => message.role), ['user', 'assistant', 'user']);
  await finished(page);
  await page.locator('.turn:last-child button', { hasText: 'Again' }).click();
  await finished(page);
  assert.equal(await page.locator('.turn').count(), 4);
  await page.click('#new');
  assert.equal(await page.locator('.turn').count(), 0);
  await page.done('again');
});

test('what the server refuses is shown in its words', async () => {
  const page = await open();
  await page.fill('#set-max_tokens', '999999');
  await send(page, 'What is AI?');
  const alert = page.locator('[role=alert]');
  await alert.waitFor();
  assert.match(await alert.textContent(), /999999 output tokens \(max_tokens\)/);
  await page.click('#reset');
  await alert.getByText('Try again').click();
  await finished(page);
  assert.equal(await alert.count(), 0);
  await page.done('error');
});

test('an error in mid-stream is shown, and what came before it stays', async () => {
  const page = await open();
  const body = 'data: {"choices":[{"index":0,"delta":{"content":"A beginning"}}]}\n\nevent: error\ndata: {"error":{"message":"the device is gone","code":500}}\n\ndata: [DONE]\n\n';
  await page.route('**/v1/chat/completions', route => route.fulfill({ contentType: 'text/event-stream', body }));
  await send(page, 'Hi');
  await page.locator('[role=alert]', { hasText: 'the device is gone' }).waitFor();
  await page.locator('.turn .said', { hasText: 'A beginning' }).waitFor();
  await page.done('mid-stream');
});

test('what a model says is text, never markup', async () => {
  const page = await open();
  const text = '<img src=x onerror=alert(1)> **bold** `code`\n\n- one\n- two\n\n```html\n<script>1</script>\n```';
  const body = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: text } }] })}\n\ndata: [DONE]\n\n`;
  await page.route('**/v1/chat/completions', route => route.fulfill({ contentType: 'text/event-stream', body }));
  await send(page, '<b>Hi</b>');
  await finished(page);
  assert.equal(await page.locator('.said img, .said script, .user b').count(), 0);
  assert.deepEqual(await page.locator('.said strong, .said code, .said li').allTextContents(), ['bold', 'code', 'one', 'two', '<script>1</script>']);
  await page.done('text');
});

test('tokens show their probabilities to the mouse and to the keyboard', async () => {
  const page = await open();
  await page.check('#logprobs', { force: true });
  await page.click('#tab-completion');
  await page.fill('#prompt', 'San Francisco is a');
  await page.press('#prompt', 'Control+Enter');
  await finished(page);
  const tokens = page.locator('.tok');
  assert.ok(await tokens.count() > 3);
  await tokens.first().hover();
  await page.locator('#tip .row.chosen').waitFor();
  assert.equal(await page.locator('#tip .row').count(), 5);
  await page.mouse.move(2, 790);
  await page.locator('#tip').waitFor({ state: 'hidden' });
  await tokens.first().focus();
  await page.keyboard.press('ArrowRight');
  assert.equal(await tokens.nth(1).evaluate(token => token === document.activeElement), true);
  await page.locator('#tip').waitFor();
  await page.done('tokens');
});

test('it can be used by keyboard alone', async () => {
  const page = await open();
  await page.locator('#theme').focus();
  await page.keyboard.press('/');
  await page.keyboard.type('What is AI?');
  await page.keyboard.press('Enter');
  await finished(page);
  await page.locator('#tab-chat').focus();
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('#tab-completion').getAttribute('aria-selected'), 'true');
  // Everything that acts has a name, for those who do not see it.
  const nameless = await page.evaluate(() => [...document.querySelectorAll('button, input, textarea, select')]
    .filter(element => !(element.textContent.trim() || element.title || element.ariaLabel || element.labels?.length)).map(element => element.outerHTML));
  assert.deepEqual(nameless, []);
  await page.done('keyboard');
});

test('settings and the choice of dark or light are kept', async () => {
  const page = await open({ colorScheme: 'dark' });
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
  await page.click('#theme');
  await page.fill('#set-temperature', '0.3');
  await page.fill('#system', 'Be brief.');
  await page.reload();
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'light');
  const [request] = await Promise.all([page.waitForRequest('**/v1/chat/completions'), send(page, 'Hi')]);
  const body = request.postDataJSON();
  assert.equal(body.temperature, 0.3);
  assert.deepEqual(body.messages[0], { role: 'system', content: 'Be brief.' });
  assert.equal('top_p' in body, false, 'what was not touched is not sent');
  await finished(page);
  await page.done('settings');
});

test('on a phone nothing is cut off, and the settings open and close', async () => {
  const page = await open({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
  await send(page, 'What is AI?');
  await finished(page);
  for (const element of ['html', '#scroll', 'header']) {
    assert.ok(await page.locator(element).evaluate(e => e.scrollWidth <= e.clientWidth), `${element} is too wide`);
  }
  assert.equal(await page.locator('#panel').isVisible(), false);
  await page.tap('#side');
  await page.locator('#set-temperature').waitFor();
  await page.locator('.dot.ok').waitFor();
  if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/drawer.png` });
  await page.keyboard.press('Escape');
  await page.locator('#panel').waitFor({ state: 'hidden' });
  await page.done('phone');
});

test('a server with keys asks for one', async () => {
  const address = await serve('--api-key', 'secret');
  const page = await open({}, address);
  await page.fill('#key', 'wrong');
  await page.keyboard.press('Enter');
  await page.locator('#wrong', { hasText: 'does not know' }).waitFor();
  await page.fill('#key', 'secret');
  await page.keyboard.press('Enter');
  await page.locator('#model option').first().waitFor({ state: 'attached' });
  await send(page, 'What is AI?');
  await finished(page);
  await page.reload();
  await page.locator('#model option').first().waitFor({ state: 'attached' });
  await page.click('#forget');
  await page.locator('#key').waitFor();
  await page.done('key');
});
