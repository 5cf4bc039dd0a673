// The page of `aweigh app` in headless Chromium: the whole loop with the built-in model, and what goes wrong.
//
// node app.mjs AWEIGH CHROMIUM PLAYWRIGHT AXE FOLDER: the two programs, the folders of playwright-core and
// axe-core, and a folder for the app's files and the screenshots. `cargo xtask page` calls it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { accessibility, say } from "./tools.mjs";

const [aweigh, executablePath, playwright, axe, folder] = process.argv.slice(2);
const { chromium } = await import(path.join(playwright, "index.mjs"));
const accessible = accessibility(axe);
const home = path.join(folder, "home");
const shots = path.join(folder, "screenshots");
fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(shots, { recursive: true });

/// How the built-in model's rude answers begin.
const RUDE = /^(Stop wasting my time|What a stupid question|Oh great, another clueless|Are you really this)/;

let server;
let url;
process.on("exit", () => server?.kill("SIGKILL"));
async function start(port = 0) {
  const flags = ["app", "--dir", home, "--port", String(port), "--no-open", "--json", "--quiet"];
  server = spawn(aweigh, flags, { stdio: ["ignore", "pipe", "inherit"] });
  const line = await new Promise((resolve, reject) => {
    server.stdout.once("data", resolve);
    server.once("exit", (code) => reject(new Error(`the app ended with ${code}`)));
  });
  url = JSON.parse(line).url;
}
async function stop(signal) {
  const ended = new Promise((resolve) => server.once("exit", resolve));
  server.kill(signal);
  await ended;
}

await start();
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const failures = [];
async function newPage(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 850 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("pageerror", (error) => failures.push(`an error in the page: ${error.message}`));
  page.on("request", (request) => {
    const own = request.url().startsWith(url) || request.url().startsWith("blob:");
    if (!own) failures.push(`a request to ${request.url()}`);
  });
  await page.goto(url);
  return page;
}
const began = Date.now();
const go = (page, name) => page.locator("nav").getByRole("link", { name, exact: true }).click();
const press = (page, name) => page.getByRole("button", { name, exact: true }).click();
const flagCount = async (page, count) => page.locator("#status", { hasText: `${count} flag` }).waitFor();
const ready = (page) => page.waitForFunction(async () =>
  (await (await fetch("/app/state")).json()).model.status === "ready");
const shot = (page, name) => page.screenshot({ path: path.join(shots, `${name}.png`), fullPage: true });

// The first run: open the built-in model, ask, flag with a click, take it back, flag with a key.
const page = await newPage();
await page.getByText("New here?").waitFor();
await accessible(page, "model");
await press(page, "Open the built-in model");
await page.getByRole("textbox", { name: "Your message" }).waitFor();
await ready(page);
await page.locator(".chips button").first().click();
const first = page.locator("article.turn").first();
await first.getByRole("button", { name: "Flag", exact: true }).click();
await flagCount(page, 1);
await page.locator("#toast").getByRole("button", { name: "Undo" }).click();
await flagCount(page, 0);
await page.getByRole("log").focus();
await page.keyboard.press("f");
await flagCount(page, 1);
await page.getByRole("button", { name: "Flagged", exact: true }).waitFor();
// Words are marked, and become a rule.
await page.evaluate(() => {
  const text = document.querySelector("article.turn .text").firstChild;
  getSelection().setBaseAndExtent(text, 0, text, 8);
});
await press(page, "Mark the selected words");
await page.locator("article.turn mark").waitFor();
await page.getByRole("textbox", { name: "Why this answer is flagged" }).fill("a test");
await page.keyboard.press("Tab");
await accessible(page, "chat");
await shot(page, "chat");
const kept = () => fs.readFileSync(path.join(home, "tiny/flagged.jsonl"), "utf8").trim().split("\n")
  .filter((line) => line).map((line) => JSON.parse(line));
await page.waitForFunction(async () => (await (await fetch("/app/flags")).json()).flags[0].note === "a test");
assert.equal(kept()[0].parts.length, 1);
assert.equal(kept()[0].label, false);
say("chat, flag, undo, mark: done");

// A second page sees the flag; the conversation is there after a reload.
const second = await newPage({ colorScheme: "dark" });
await flagCount(second, 1);
await second.locator("article.turn.flagged").waitFor();
await accessible(second, "chat, dark");
await shot(second, "chat-dark");
await first.getByRole("button", { name: "Flagged", exact: true }).click();
await flagCount(second, 0);
await second.locator("article.turn.flagged").waitFor({ state: "detached" });
say("two pages: done");

// Many prompts; the rude answers are flagged.
await press(page, "Many prompts");
await page.getByText("Prompts, one a line").waitFor();
await page.waitForFunction(() => document.querySelector("textarea").value.includes("\n"));
await press(page, "Ask");
await page.waitForFunction(() => document.querySelectorAll("article.turn").length === 60);
// Some by hand, the others by a rule.
let flagged = 0;
for (const card of await page.locator("article.turn").all()) {
  if (!RUDE.test(await card.locator(".text").innerText())) continue;
  flagged += 1;
  if (flagged <= 5) await card.getByRole("button", { name: "Flag", exact: true }).click();
}
assert.ok(flagged >= 10, `${flagged} rude answers of 60`);
await flagCount(page, 5);
const rule = page.getByRole("textbox", { name: /Words of the habit, as a rule/ });
await rule.fill("rude");
await page.keyboard.press("Tab");
await page.locator("#toast").getByText("expected a rule").waitFor();
await rule.fill(`match:${RUDE.source}`);
await page.keyboard.press("Tab");
await page.getByText(`${flagged} of 60 answers have it, 5 of them flagged.`).waitFor();
await page.getByLabel("Show only answers with the habit").check();
await page.waitForFunction((wanted) =>
  [...document.querySelectorAll("article.turn")].filter((one) => !one.hidden).length === wanted, flagged);
await press(page, "Flag the others");
await flagCount(page, flagged);
await page.locator("#toast").getByRole("button", { name: "Undo" }).click();
await flagCount(page, 5);
await press(page, "Flag the others");
await flagCount(page, flagged);
await shot(page, "many");
await accessible(page, "many prompts");
say(`${flagged} of 60 answers were rude and are flagged`);

// The same answer given twice has one flag, and "Undo" takes it back.
await page.getByRole("textbox", { name: "Prompts, one a line" }).fill("Hello\nGood morning");
await page.getByRole("spinbutton", { name: "Temperature" }).fill("0");
await page.getByRole("spinbutton", { name: "Answers to each" }).fill("2");
await page.keyboard.press("Tab");
await press(page, "Ask");
await page.waitForFunction(() => document.querySelectorAll("article.turn").length === 4);
await rule.fill("match:.");
await page.keyboard.press("Tab");
await page.getByText("4 of 4 answers have it, 0 of them flagged.").waitFor();
await press(page, "Flag them");
await page.getByText("4 of 4 answers have it, 4 of them flagged.").waitFor();
await flagCount(page, flagged + 2);
await page.locator("#toast").getByText("2 answers flagged.").waitFor();
await page.locator("#toast").getByRole("button", { name: "Undo" }).click();
await flagCount(page, flagged);
await rule.fill(`match:${RUDE.source}`);
await page.keyboard.press("Tab");
await page.getByText("0 of 4 answers have it").waitFor();

// A broken file changes nothing; a good one adds.
await go(page, "Align");
const broken = { name: "broken.jsonl", mimeType: "", buffer: Buffer.from("{\n") };
await page.locator("#import").setInputFiles(broken);
await page.getByText("broken.jsonl:1").waitFor();
assert.equal(kept().length, flagged);
const pair = { prompt: "Hi.", chosen: "Hello!", rejected: "Stop wasting my time." };
const good = { name: "pairs.jsonl", mimeType: "", buffer: Buffer.from(JSON.stringify(pair)) };
await page.locator("#import").setInputFiles(good);
await page.getByText("pairs.jsonl: 1 new flag").waitFor();
await flagCount(page, flagged + 1);
// One that is dropped.
await page.evaluate(() => {
  const files = new DataTransfer();
  files.items.add(new File(['{"prompt": "Ho.", "rejected": "No."'], "half.jsonl"));
  const drop = new DragEvent("drop", { dataTransfer: files, bubbles: true });
  document.querySelector(".drop").dispatchEvent(drop);
});
await page.getByText("half.jsonl:1").waitFor();
await page.getByText("Show them").click();
await press(page, "Take the flag on Stop wasting my time. back");
await flagCount(page, flagged);
say("files: done");

// The plan, wrong settings, and a run.
await page.getByText("to train on", { exact: false }).first().waitFor();
await page.getByText("All other settings").click();
const more = page.getByRole("textbox", { name: "As in a file for aweigh align --config" });
await more.fill("[train]\nlerning_rate = 1");
await page.keyboard.press("Tab");
await page.getByText("settings:2: train.lerning_rate").waitFor();
await more.fill("");
await page.keyboard.press("Tab");
await accessible(page, "align");
await press(page, "Align");
await page.getByRole("heading", { name: "Run 1: finished" }).waitFor({ timeout: 180_000 });
await page.getByText("Ended after step").waitFor();
await page.getByText("Rewards", { exact: true }).waitFor();
await accessible(page, "a finished run");
await shot(page, "align");
say("run 1 has ended");

// Compare: blind, then in figures.
await go(page, "Compare");
await press(page, "Ask both");
await page.getByText("Answer A", { exact: true }).waitFor();
await accessible(page, "a blind pair");
await press(page, "Answer A is better");
await page.getByText("You prefer the answer").waitFor();
await page.getByText("Blind: 1 compared").waitFor();
await press(page, "Measure");
const table = page.locator("section", { hasText: "help desk, held out" });
await table.waitFor({ timeout: 180_000 });
const cells = await table.locator("tr", { hasText: /^hostile/ }).locator("td").allInnerTexts();
const [before, after] = cells.slice(1).map((text) => parseFloat(text));
assert.ok(before > 20 && after <= 5, `rude before ${before}%, after ${after}%`);
await accessible(page, "a comparison");
await shot(page, "compare");
say(`of 200 held-out answers ${before}% were rude before, ${after}% after`);
const minutes = (Date.now() - began) / 60_000;

// Take away.
await go(page, "Take away");
for (const title of ["For Ollama", "GGUF adapter", "Report"]) {
  await press(page, `Make it: ${title}`);
  await page.getByRole("button", { name: `Make it again: ${title}` }).waitFor();
}
const [download] = await Promise.all([page.waitForEvent("download"),
  page.getByRole("link", { name: "Modelfile" }).click()]);
assert.match(fs.readFileSync(await download.path(), "utf8"), /^FROM \.\/model\.gguf\nTEMPLATE/);
await accessible(page, "take away");
await shot(page, "take-away");
const report = await page.context().newPage();
await report.goto(`${url}app/runs/1/report`);
await report.getByText("Answers through the run").waitFor();
await report.close();
say("exports: done");

// The adapter answers in a chat.
await go(page, "Chat");
await press(page, "New conversation");
await page.getByText("Settings of this conversation").click();
await page.getByRole("combobox", { name: "Who answers" }).selectOption("run-1");
await page.getByRole("textbox", { name: "Your message" }).fill("My printer prints only blank pages.");
await page.keyboard.press("Enter");
await page.getByText("Run 1", { exact: true }).waitFor();
await page.getByRole("button", { name: "Ask again" }).waitFor();

// A long run: reload, pause, resume, the app is killed, resume, finish.
await go(page, "Align");
await page.getByRole("spinbutton", { name: "Steps, at most" }).fill("4000");
await page.getByText("All other settings").click();
await more.fill("[train]\nnum_train_epochs = 2000\n[stop]\nenabled = false");
await page.keyboard.press("Tab");
await press(page, "Align");
await page.getByText(/Training: [1-9]\d* of 4000/).waitFor({ timeout: 180_000 });
await page.reload();
await page.getByRole("heading", { name: "Run 2: running" }).waitFor();
await press(page, "Pause");
await page.getByRole("heading", { name: "Run 2: paused" }).waitFor();
await press(page, "Resume");
await page.getByRole("heading", { name: "Run 2: running" }).waitFor();
say("reload, pause, resume: done");
const { port } = new URL(url);
await stop("SIGKILL");
await page.getByRole("alert").waitFor();
await shot(page, "stopped");
await start(port);
await page.getByRole("alert").waitFor({ state: "hidden" });
await go(page, "Model");
await press(page, "Open it again");
await ready(page);
await flagCount(page, flagged);
await go(page, "Align");
await press(page, "Run 2: paused");
await press(page, "Resume");
await page.getByText(/Training: \d+ of 4000/).waitFor({ timeout: 180_000 });
await press(page, "Finish now, keep the best");
await page.getByRole("heading", { name: "Run 2: finished" }).waitFor({ timeout: 180_000 });
say("killed, resumed, finished: done");

// With the keyboard alone, on a phone's width.
const phone = await newPage({ viewport: { width: 390, height: 800 } });
await phone.getByRole("textbox", { name: "Your message" }).waitFor();
for (const name of ["Model", "Chat", "Align", "Compare", "Take away"]) {
  await go(phone, name);
  await phone.getByRole("heading", { level: 2, name, exact: true }).waitFor();
  await phone.waitForTimeout(1500);
  const wide = await phone.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `${name} is ${wide} pixels wider than a phone`);
  await accessible(phone, `${name}, phone`);
  await shot(phone, `phone-${name.toLowerCase().replace(" ", "-")}`);
}
await phone.goto(`${url}#model`);
await phone.reload();
const focusOn = async (text) => {
  for (let i = 0; i < 60; i += 1) {
    await phone.keyboard.press("Tab");
    const found = await phone.evaluate(() => document.activeElement.innerText
      || document.activeElement.getAttribute("aria-label"));
    if (found?.trim() === text) return;
  }
  assert.fail(`${text} is not reached with the Tab key`);
};
await focusOn("Chat");
await phone.keyboard.press("Enter");
await phone.getByRole("textbox", { name: "Your message" }).waitFor();
await focusOn("New conversation");
await phone.keyboard.press("Enter");
await phone.keyboard.type("My lamp is dark.");
await phone.keyboard.press("Enter");
await phone.getByRole("button", { name: "Flag", exact: true }).waitFor();
await focusOn("Your message");
await phone.keyboard.press("Shift+Tab");
await phone.keyboard.press("f");
await flagCount(phone, flagged + 1);
await focusOn("Flagged");
await phone.keyboard.press("Enter");
await flagCount(phone, flagged);
say("phone and keyboard: done");

await browser.close();
await stop("SIGINT");
assert.deepEqual(failures, []);
console.log(`the first loop, from opening the page to the figures, took ${minutes.toFixed(1)} minutes; `
  + `screenshots are in ${shots}`);
