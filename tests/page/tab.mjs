// The app in a tab, in headless Chromium on SwiftShader's WebGPU: the built-in model is aligned, with a
// reload in the middle, and the adapter is compared with the program.
// node tab.mjs URL AWEIGH CHROMIUM PLAYWRIGHT AXE FOLDER

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { accessibility, say } from "./tools.mjs";

const [url, aweigh, executablePath, playwright, axe, folder] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(path.join(folder, "adapter"), { recursive: true });
const accessible = accessibility(axe);

/// How the built-in model's rude answers begin.
const RUDE = /^(Stop wasting my time|What a stupid question|Oh great, another clueless|Are you really this)/;

const webgpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...webgpu] });
const context = await browser.newContext({ acceptDownloads: true, viewport: { width: 1200, height: 850 } });
const outside = [];
context.on("request", (request) => {
  if (!request.url().startsWith(url) && !request.url().startsWith("blob:")) outside.push(request.url());
});
const page = await context.newPage();
page.setDefaultTimeout(300_000);
page.on("pageerror", (error) => assert.fail(error.message));
page.on("console", (message) => {
  if (["warning", "error"].includes(message.type())) console.log(`        ${message.text()}`);
});
// A page with a run asks whether it may be left.
page.on("dialog", (dialog) => dialog.accept());

const go = (name) => page.locator("nav").getByRole("link", { name, exact: true }).click();
const press = (name) => page.getByRole("button", { name, exact: true }).click();
const ready = () => page.waitForFunction(() => {
  const words = document.getElementById("status").textContent;
  return words.startsWith("tiny") && !/loading|not /.test(words);
});
const shot = (name) => page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true });
const download = async (link, place) => {
  const [file] = await Promise.all([page.waitForEvent("download"), link.click()]);
  await file.saveAs(place);
  return fs.readFileSync(place);
};

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
  await download(page.getByRole("link", { name, exact: true }), path.join(folder, "adapter", name));
}
for (const title of ["GGUF adapter", "Report"]) {
  await press(`Make it: ${title}`);
  await page.getByRole("button", { name: `Make it again: ${title}` }).waitFor();
}
const gguf = await download(page.getByRole("link", { name: "adapter.gguf" }), path.join(folder, "a.gguf"));
assert.equal(gguf.subarray(0, 4).toString(), "GGUF");
const html = path.join(folder, "report.html");
const report = await download(page.getByRole("link", { name: "report.html" }), html);
assert.match(report.toString(), /Answers through the run/);
const records = {};
for (const name of ["held-out.jsonl", "summary.json", "config.toml", "metrics.jsonl"]) {
  const place = path.join(folder, name);
  records[name] = (await download(page.getByRole("link", { name, exact: true }), place)).toString();
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
assert.deepEqual(outside, [], "requests to other sites");
await browser.close();
