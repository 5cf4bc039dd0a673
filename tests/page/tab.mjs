// The app in a tab, in headless Chromium on SwiftShader's WebGPU: the built-in model is aligned, with a
// reload in the middle, and the adapter is compared with the program.
// node tab.mjs URL AWEIGH CHROMIUM PLAYWRIGHT AXE FOLDER

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import {
  accessibility, download, inTab, lossesApart, onSwiftShader, rows, say, swiftShader,
} from "./tools.mjs";

const [url, aweigh, chromium, playwright, axe, folder] = process.argv.slice(2);
fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(path.join(folder, "adapter"), { recursive: true });
const accessible = accessibility(axe);

/// How the built-in model's rude answers begin.
const RUDE = /^(Stop wasting my time|What a stupid question|Oh great, another clueless|Are you really this)/;

const { browser, context, page, outside } = await inTab({ chromium, playwright, url });
// A page with a run asks whether it may be left.
page.on("dialog", (dialog) => dialog.accept());

const go = (name) => page.locator("nav").getByRole("link", { name, exact: true }).click();
const press = (name) => page.getByRole("button", { name, exact: true }).click();
const ready = () => page.waitForFunction(() => {
  const words = document.getElementById("status").textContent;
  return words.startsWith("tiny") && !/loading|not /.test(words);
});
const shot = (name) => page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true });
await page.goto(url);
await page.getByText("New here?").waitFor();
await accessible(page, "model");
await shot("model");
const opened = Date.now();
await press("Open the built-in model");
await page.getByRole("textbox", { name: "Your message" }).waitFor();
await ready();
const loaded = Date.now();
await page.locator(".chips button").first().click();
await page.waitForFunction(() => document.querySelector("article.turn .text")?.textContent.length > 0);
const seconds = (from, to) => ((to - from) / 1000).toFixed(1);
say(`the built-in model is loaded in ${seconds(opened, loaded)} s; the first token comes after ${
  seconds(loaded, Date.now())} s, kernels compiled`);
await accessible(page, "chat");

// Many prompts; a rule finds the rude answers.
await press("Many prompts");
await page.waitForFunction(() => document.querySelector("textarea").value.includes("\n"));
await press("Ask");
await page.waitForFunction(() => document.querySelectorAll("article.turn").length === 60);
const rule = page.getByRole("textbox", { name: /Words of the habit, as a rule/ });
await rule.fill(`match:${RUDE.source}`);
await page.keyboard.press("Tab");
await page.getByText(/\d+ of 60 answers have it/).waitFor();
await page.getByRole("button", { name: /^Flag (them|the others)$/ }).click();
await page.locator("#status", { hasText: /\d{2} flags/ }).waitFor();
say(`${(await page.locator("#status").innerText()).match(/\d+ flags/)[0]} of 60 answers`);

// A run, a reload in its middle, and the rest of it.
await go("Align");
await page.getByText("to train on", { exact: false }).first().waitFor();
await page.getByLabel("Keep chatting during the run").uncheck();
await press("Align");
await page.getByText(/Training: ([2-9]|\d\d)\d* of/).waitFor();
await shot("align");
await page.reload();
await page.getByRole("heading", { name: "Model", exact: true }).or(
  page.getByRole("heading", { name: "No model is open" })).first().waitFor();
await go("Model");
await press("Open it again");
await ready();
await go("Align");
await page.getByRole("heading", { name: "Run 1: paused" }).waitFor();
say("reloaded in the middle of the training: the run is paused");
await press("Resume");
await page.getByRole("heading", { name: "Run 1: finished" }).waitFor();
await accessible(page, "a finished run");
await shot("finished");
say("resumed; run 1 has ended");

// Before and after.
await go("Compare");
await press("Measure");
const table = page.locator("section", { hasText: "help desk, held out" });
await table.waitFor();
const cells = await table.locator("tr", { hasText: /^hostile/ }).locator("td").allInnerTexts();
const [before, after] = cells.slice(1).map((text) => parseFloat(text));
assert.ok(before > 20 && after <= 5, `rude before ${before}%, after ${after}%`);
say(`of 200 held-out answers ${before}% were rude before, ${after}% after`);

// Taken away, and scored by the program.
await go("Take away");
for (const name of ["adapter_config.json", "adapter_model.safetensors"]) {
  await download(page, page.getByRole("link", { name, exact: true }), path.join(folder, "adapter", name));
}
for (const title of ["GGUF adapter", "Report"]) {
  await press(`Make it: ${title}`);
  await page.getByRole("button", { name: `Make it again: ${title}` }).waitFor();
}
const adapter = page.getByRole("link", { name: "adapter.gguf" });
const gguf = await download(page, adapter, path.join(folder, "adapter.gguf"));
assert.equal(gguf.subarray(0, 4).toString(), "GGUF");
const html = path.join(folder, "report.html");
const report = await download(page, page.getByRole("link", { name: "report.html" }), html);
assert.match(report.toString(), /Answers through the run/);
const records = {};
for (const name of ["train.jsonl", "held-out.jsonl", "summary.json", "config.toml", "metrics.jsonl",
  "samples.jsonl"]) {
  const link = page.getByRole("link", { name, exact: true });
  records[name] = (await download(page, link, path.join(folder, name))).toString();
}
await accessible(page, "take away");
await shot("take-away");
const summary = JSON.parse(records["summary.json"]);
const flags = ["score", "--model", "tiny", "--adapter", path.join(folder, "adapter"), "--quiet",
  "--data", path.join(folder, "held-out.jsonl")];
const lines = execFileSync(aweigh, flags, { encoding: "utf8" }).trim().split("\n");
const scored = lines.map((line) => JSON.parse(line));
const own = scored.reduce((sum, row) => sum + row.logp, 0) / scored.length;
const theirs = summary.after["eval_logps/negative"];
assert.ok(Math.abs(own - theirs) < 1e-3, `held-out flags: ${theirs} in the tab, ${own} in the program`);
say(`log-prob of held-out flags: ${theirs.toFixed(5)} in the tab, ${own.toFixed(5)} in the program`);

// The same run in the program, on Chromium's own SwiftShader: the same tokens, and the same losses.
const driver = swiftShader(chromium);
if (driver) {
  const began = Date.now();
  const own = onSwiftShader(driver, aweigh, folder, []);
  assert.deepEqual(own.anchors, rows(records["samples.jsonl"]).map(({ ids }) => ids), "anchors");
  const apart = lossesApart(rows(records["metrics.jsonl"]), own.metrics);
  assert.ok(apart < 1e-5, `losses are ${apart} apart`);
  say(`the program on SwiftShader: the same ${own.anchors.length} anchors; losses of ${own.summary.steps} `
    + `steps at most ${apart.toExponential(1)} apart; ${seconds(began, Date.now())} s`);
} else say("not compared with the program: no SwiftShader for it was found");

// Without a network the page still opens: its files are kept.
await context.setOffline(true);
await page.reload();
await go("Model");
await press("Open it again");
await ready();
await context.setOffline(false);
say("without a network: it opens");

// A second tab says that the first one has the files.
const second = await context.newPage();
await second.goto(url);
await second.getByText("Aweigh is open in another tab").waitFor();
await accessible(second, "a second tab");
await second.close();
say("a second tab: a sentence");

/// A page whose worker begins with `change`, with storage of its own.
const worker = await (await context.request.get(`${url}worker.js`)).text();
async function changed(change) {
  const own = await browser.newContext({ serviceWorkers: "block" });
  const body = `${change}\n${worker}`;
  await own.route("**/worker.js", (route) => route.fulfill({ contentType: "text/javascript", body }));
  const page = await own.newPage();
  page.setDefaultTimeout(300_000);
  await page.goto(url);
  return page;
}

// The GPU is lost in a run: it is opened again, and the run goes on from its last state.
const losing = await changed(`{
  globalThis.devices = [];
  const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (...given) {
    const device = await requestDevice.apply(this, given);
    devices.push(device);
    return device;
  };
}`);
await losing.getByRole("button", { name: "Open the built-in model" }).click();
await losing.getByRole("textbox", { name: "Your message" }).waitFor();
await losing.locator("nav").getByRole("link", { name: "Align" }).click();
await losing.locator("#import").setInputFiles(path.join(folder, "train.jsonl"));
await losing.getByText("new flags").waitFor();
await losing.getByRole("spinbutton", { name: "Steps, at most" }).fill("8");
await losing.keyboard.press("Tab");
await losing.getByText("at most 8 steps").waitFor();
await losing.getByRole("button", { name: "Align", exact: true }).click();
await losing.getByText(/Training: [2-6] of/).waitFor();
await losing.workers()[0].evaluate(() => globalThis.devices.at(-1).destroy());
await losing.getByText(/reopening it and resuming/).waitFor();
await losing.getByRole("heading", { name: "Run 1: finished" }).waitFor();
await losing.screenshot({ path: path.join(folder, "lost.png"), fullPage: true });
say("a device that is destroyed in a run: opened again, and the run has ended");
await losing.context().close();

// A browser whose limits are too small.
const small = await changed(`Object.defineProperty(GPUSupportedLimits.prototype,
  "maxComputeWorkgroupStorageSize", { get: () => 4096 });`);
await small.getByRole("button", { name: "Open the built-in model" }).click();
await small.locator("nav").getByRole("link", { name: "Model" }).click();
const refused = small.locator("p.error", { hasText: /maxComputeWorkgroupStorageSize|workgroup/i });
const refusal = await refused.first().innerText();
await accessible(small, "too small limits");
await small.screenshot({ path: path.join(folder, "small.png"), fullPage: true });
say(`too small limits: ${refusal.split("\n")[0].slice(0, 150)}`);
await small.context().close();
assert.deepEqual(outside, [], "requests to other sites");
await browser.close();
