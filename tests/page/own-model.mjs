// A model of the user's own in a tab, from its GGUF file: chat, and LoRA steps beside the program's on the
// same SwiftShader.
// node own-model.mjs URL AWEIGH CHROMIUM PLAYWRIGHT AXE FOLDER GGUF

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import {
  accessibility, download, inTab, lossesApart, onSwiftShader, rows, say, swiftShader,
} from "./tools.mjs";

const [url, aweigh, chromium, playwright, axe, folder, gguf] = process.argv.slice(2);
fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(folder, { recursive: true });
const accessible = accessibility(axe);
const { browser, page, outside } = await inTab({ chromium, playwright, url });
page.setDefaultTimeout(500_000);
const go = (name) => page.locator("nav").getByRole("link", { name, exact: true }).click();
const press = (name) => page.getByRole("button", { name, exact: true }).click();
const memory = async () => (await page.locator("footer span").innerText()).match(/[\d.]+ \w+/)[0];

// A file that is no model.
await page.goto(url);
const broken = { name: "broken.gguf", mimeType: "", buffer: Buffer.from("GGUF, but not much of it") };
await page.locator("#model-files").setInputFiles(broken);
await page.getByText("models/broken.gguf is here.").waitFor();
await page.locator("p.error", { hasText: "models/broken.gguf" }).waitFor();
await accessible(page, "a broken file");
await page.screenshot({ path: path.join(folder, "broken.png"), fullPage: true });
page.once("dialog", (dialog) => dialog.accept());
await press("Remove models/broken.gguf");
await page.getByRole("button", { name: "Remove models/broken.gguf" }).waitFor({ state: "detached" });
const other = { name: "notes.doc", mimeType: "", buffer: Buffer.from("x") };
await page.locator("#model-files").setInputFiles(other);
await page.getByText("found notes.doc").waitFor();
say("a broken GGUF file, and a file of another kind: a sentence each");

// The model.
const name = `models/${path.basename(gguf)}`;
let began = Date.now();
const since = () => ((Date.now() - began) / 1000).toFixed(1);
await page.locator("#model-files").setInputFiles(gguf);
await page.getByText(`${name} is here.`).waitFor();
say(`${(fs.statSync(gguf).size / 1e6).toFixed(0)} MB are copied in ${since()} s`);
await page.getByText("to align", { exact: true }).waitFor();
began = Date.now();
await press("Open");
const question = page.getByRole("textbox", { name: "Your message" });
await question.waitFor();
await page.waitForFunction((name) => {
  const words = document.getElementById("status").textContent;
  return words.startsWith(name) && !/loading|not /.test(words);
}, name);
say(`loaded in ${since()} s; the tab uses ${await memory()}`);
await question.fill("What is the capital of France?");
began = Date.now();
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelector("article.turn .text")?.textContent.length > 0);
const first = since();
await page.getByRole("button", { name: "Ask again" }).waitFor();
const answer = await page.locator("article.turn .text").first().innerText();
say(`first token after ${first} s, whole answer after ${since()} s: ${answer.slice(0, 60)}`);
await page.screenshot({ path: path.join(folder, "chat.png"), fullPage: true });

// Three LoRA steps on a few flags.
const topics = ["tea", "rain", "bread", "trains"];
const says = (role, content) => [{ role, content }];
const flag = (topic) => JSON.stringify({ prompt: says("user", `Tell me about ${topic}.`), label: false,
  completion: says("assistant", `You should know about ${topic} yourself by now.`) });
await go("Align");
await page.locator("#import").setInputFiles({ name: "flags.jsonl", mimeType: "",
  buffer: Buffer.from(topics.map(flag).join("\n")) });
await page.getByText("4 new flags").waitFor();
await page.getByRole("spinbutton", { name: "Steps, at most" }).fill("3");
await page.getByLabel("Keep chatting during the run").uncheck();
await page.getByText("All other settings").click();
await page.getByRole("textbox", { name: "As in a file for aweigh align --config" }).fill("[method]\n"
  + "num_samples = 2\n[anchors]\nmax_new_tokens = 16\n[stop]\nenabled = false\n"
  + "[output]\nnum_completions = 0\n[train]\nper_device_train_batch_size = 2\n");
await page.keyboard.press("Tab");
await page.getByText("4 flags to train on").waitFor();
await press("Align");
await page.getByRole("heading", { name: "Run 1: finished" }).waitFor();
await page.screenshot({ path: path.join(folder, "run.png"), fullPage: true });
const used = await memory();
await go("Take away");
const records = {};
for (const name of ["train.jsonl", "config.toml", "summary.json", "metrics.jsonl", "samples.jsonl"]) {
  const link = page.getByRole("link", { name, exact: true });
  records[name] = (await download(page, link, path.join(folder, name))).toString();
}
const summary = JSON.parse(records["summary.json"]);
const speed = ({ tokens_per_second: rate, seconds }) =>
  `${rate.toFixed(1)} tokens/s of training, ${seconds.toFixed(0)} s in all`;
const mebibytes = (summary.memory_peak / 2 ** 20).toFixed(0);
say(`3 LoRA steps: ${speed(summary)}; ${mebibytes} MiB on the GPU at most; the tab uses ${used}`);
const driver = swiftShader(chromium);
if (driver) {
  const own = onSwiftShader(driver, aweigh, folder, ["--model", gguf]);
  assert.deepEqual(own.anchors, rows(records["samples.jsonl"]).map(({ ids }) => ids), "anchors");
  const apart = lossesApart(rows(records["metrics.jsonl"]), own.metrics);
  assert.ok(apart < 1e-5, `losses are ${apart} apart`);
  const ratio = own.summary.tokens_per_second / summary.tokens_per_second;
  say(`the program on SwiftShader: the same anchors; losses at most ${apart.toExponential(1)} apart; `
    + `${speed(own.summary)}; a step takes ${ratio.toFixed(2)} times as long in the tab`);
} else say("not compared with the program: no SwiftShader for it was found");
assert.deepEqual(outside, [], "requests to other sites");
await browser.close();
