// The official openai client for JavaScript against the real program with the demo model.
//
//   npm install --prefix DIR openai
//   HOST_BIN=target/debug/host NODE_PATH=DIR/node_modules node --test tests/javascript/
//
// What holds for any small chat model is asserted: structure, limits, determinism, errors.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

// NODE_PATH holds for require only.
const OpenAI = createRequire(import.meta.url)('openai');

const messages = [{ role: 'user', content: 'What is AI?' }];
const servers = [];
let client;
let vectors;

/** Starts the program on a free port; resolves to a client of it. */
function serve(...flags) {
  const server = spawn(process.env.HOST_BIN ?? 'target/debug/host', ['serve', '--port', '0', ...flags], { stdio: ['ignore', 'ignore', 'pipe'] });
  servers.push(server);
  return new Promise((resolve, reject) => {
    let log = '';
    server.stderr.on('data', data => {
      log += data;
      const address = log.match(/serving .* on (http:\S+)\n/);
      if (address) resolve(new OpenAI({ baseURL: address[1], apiKey: 'none', maxRetries: 0, timeout: 120_000 }));
    });
    server.on('exit', () => reject(new Error(`the server ended:\n${log}`)));
  });
}

before(async () => {
  [client, vectors] = await Promise.all([serve(), serve('--runner', 'pooling')]);
});

after(() => {
  for (const server of servers) {
    server.removeAllListeners('exit');
    server.kill('SIGKILL');
  }
});

test('models', async () => {
  const models = await client.models.list();
  assert.equal(models.data[0].id, 'host-demo');
  assert.equal((await client.models.retrieve('host-demo')).object, 'model');
});

test('completions, whole and streamed, are the same', async () => {
  const request = { model: 'host-demo', prompt: 'San Francisco is a', max_tokens: 12, temperature: 0 };
  const whole = await client.completions.create(request);
  assert.equal(whole.usage.completion_tokens, 12);
  let text = '';
  let usage;
  for await (const chunk of await client.completions.create({ ...request, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.text ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].text);
  assert.deepEqual(usage, whole.usage);
});

test('chats, whole and streamed, are the same', async () => {
  const request = { model: 'host-demo', messages, max_completion_tokens: 30, temperature: 0, logprobs: true, top_logprobs: 2 };
  const whole = await client.chat.completions.create(request);
  const { message, logprobs } = whole.choices[0];
  assert.equal(message.role, 'assistant');
  assert.ok(logprobs.content.length > 0 && logprobs.content[0].top_logprobs.length === 2);
  const stream = client.chat.completions.stream(request);
  assert.equal((await stream.finalChatCompletion()).choices[0].message.content, message.content);
});

test('structured output and a forced tool', async () => {
  const schema = {
    type: 'object',
    properties: { city: { enum: ['Bonn', 'Ulm'] } },
    required: ['city'],
    additionalProperties: false,
    // A small model may go on with white space until its tokens are used up.
    'x-guidance': { whitespace_flexible: false },
  };
  const parsed = await client.chat.completions.parse({
    model: 'host-demo',
    messages,
    max_tokens: 40,
    response_format: { type: 'json_schema', json_schema: { name: 'city', schema, strict: true } },
  });
  assert.ok(['Bonn', 'Ulm'].includes(parsed.choices[0].message.parsed.city));
  const called = await client.chat.completions.create({
    model: 'host-demo',
    messages,
    max_tokens: 60,
    tools: [{ type: 'function', function: { name: 'weather', parameters: schema } }],
    tool_choice: { type: 'function', function: { name: 'weather' } },
  });
  const [call] = called.choices[0].message.tool_calls;
  assert.equal(call.function.name, 'weather');
  assert.ok(['Bonn', 'Ulm'].includes(JSON.parse(call.function.arguments).city));
});

test('responses', async () => {
  const request = { model: 'host-demo', input: 'What is AI?', max_output_tokens: 30, temperature: 0 };
  const whole = await client.responses.create(request);
  assert.ok(whole.output_text.length > 0);
  let text = '';
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    if (event.type === 'response.output_text.delta') text += event.delta;
  }
  assert.equal(text, whole.output_text);
});

test('embeddings, as bytes by default and as numbers', async () => {
  const input = ['What is AI?', 'What is a city?'];
  const bytes = await vectors.embeddings.create({ model: 'host-demo', input });
  const numbers = await vectors.embeddings.create({ model: 'host-demo', input, encoding_format: 'float' });
  assert.equal(bytes.data.length, 2);
  for (const [i, { embedding }] of numbers.data.entries()) {
    const length = Math.hypot(...embedding);
    assert.ok(Math.abs(length - 1) < 1e-5, `a length of ${length}`);
    assert.equal(embedding.length, bytes.data[i].embedding.length);
    assert.ok(embedding.every((x, j) => Math.abs(x - bytes.data[i].embedding[j]) < 1e-6));
  }
  assert.equal(numbers.usage.prompt_tokens, bytes.usage.prompt_tokens);
});

test('errors have their class and name the field', async () => {
  const bad = client.chat.completions.create({ model: 'host-demo', messages, temperature: -1 });
  await assert.rejects(bad, error => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
  await assert.rejects(client.models.retrieve('other'), OpenAI.NotFoundError);
  const vector = client.embeddings.create({ model: 'host-demo', input: 'a' });
  await assert.rejects(vector, error => error instanceof OpenAI.BadRequestError && error.message.includes('--runner pooling'));
});

test('a stream can be left', async () => {
  const stream = await client.completions.create({
    model: 'host-demo', prompt: 'Once upon a time', max_tokens: 500, ignore_eos: true, stream: true,
  });
  let chunks = 0;
  for await (const _ of stream) {
    if (++chunks === 3) break;
  }
  assert.equal(chunks, 3);
});
