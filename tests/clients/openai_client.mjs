// OpenAI's own JavaScript client against `aweigh serve`. `cargo xtask clients` runs it.
//
// openai_client.mjs URL PACKAGE: the server has the models "tiny" and "changed", an adapter; PACKAGE is the
// folder of the package openai.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, folder] = process.argv.slice(2);
const { OpenAI } = createRequire(import.meta.url)(folder);
const { version } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));

const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const greedy = {
  messages: [{ role: "user", content: "My printer is broken." }],
  temperature: 0,
  max_tokens: 12,
};
const chat = (more) => client.chat.completions.create({ ...greedy, ...more });

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.deepEqual(names, ["tiny", "changed"]);

const whole = await chat({ model: "tiny" });
const answer = whole.choices[0].message.content;
assert.ok(answer);

let streamed = "";
let usage;
const counted = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await chat({ model: "tiny", ...counted })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, answer);
assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);

// A stream that its reader leaves.
const left = await chat({ model: "tiny", stream: true, max_tokens: 200 });
for await (const _ of left) break;

const told = (await chat({ model: "tiny", logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
assert.equal(told.map((token) => token.token).join("").trim(), answer.trim());
assert.ok(told.every((token) => token.top_logprobs[0].logprob === token.logprob));

const both = await Promise.all(["tiny", "changed", "tiny", "changed"].map((model) => chat({ model })));
const texts = both.map((one) => one.choices[0].message.content);
assert.equal(texts[0], answer);
assert.notEqual(texts[1], answer);
assert.deepEqual(texts.slice(2), texts.slice(0, 2));

const refused = (more, expected) => assert.rejects(chat(more), expected);
await refused({ model: "gpt-4" }, { status: 404, code: "model_not_found" });
await refused({ model: "tiny", top_p: 2 }, { status: 400, param: "top_p" });
console.log(`openai ${version} for JavaScript: all checks pass`);
