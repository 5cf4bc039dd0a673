// What the scripts that drive the pages share.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const began = Date.now();

/// Prints a line with the seconds since the start.
export function say(text) {
  console.log(`${String(Math.round((Date.now() - began) / 1000)).padStart(4)} s  ${text}`);
}

/// A check that axe-core, in the folder `axe`, finds nothing serious on a page as it is.
export function accessibility(axe) {
  const source = fs.readFileSync(path.join(axe, "axe.min.js"), "utf8");
  return async (page, name) => {
    // As a string: the pages' policies let no script in.
    const results = await page.evaluate(`${source}; axe.run()`);
    const bad = results.violations.filter((one) => ["serious", "critical"].includes(one.impact));
    const text = bad.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" ")}`);
    assert.deepEqual(text, [], name);
  };
}

/// Chromium with WebGPU on SwiftShader, a page in it, and the requests that it sends to other sites.
export async function inTab({ chromium: executablePath, playwright, url }) {
  const { chromium } = createRequire(import.meta.url)(playwright);
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
    if (message.type() === "warning") console.log(`        ${message.text()}`);
    if (message.type() === "error") assert.fail(message.text());
  });
  return { browser, context, page, outside };
}

/// What a link saves, which is written to `place`.
export async function download(page, link, place) {
  const [file] = await Promise.all([page.waitForEvent("download"), link.click()]);
  await file.saveAs(place);
  return fs.readFileSync(place);
}

/// The lines of a JSONL file.
export function rows(text) {
  return text.trim().split("\n").map((line) => JSON.parse(line));
}

/// How far apart the losses of two runs are, step by step.
export function lossesApart(one, other) {
  const losses = (all) => all.filter((line) => "loss" in line).map(({ loss }) => loss);
  const [own, theirs] = [losses(one), losses(other)];
  assert.ok(own.length > 0);
  assert.equal(own.length, theirs.length);
  return Math.max(...own.map((loss, i) => Math.abs(loss - theirs[i])));
}

/// The driver of the SwiftShader that comes with Chromium; undefined if there is none.
export function swiftShader(chromium) {
  const beside = path.join(path.dirname(fs.realpathSync(chromium)), "vk_swiftshader_icd.json");
  return [beside, "/usr/lib/chromium/vk_swiftshader_icd.json"].find((file) => fs.existsSync(file));
}

/// Does the run again whose records are in `folder`, with the program on SwiftShader.
export function onSwiftShader(driver, aweigh, folder, flags) {
  const out = path.join(folder, "program");
  const heldOut = path.join(folder, "held-out.jsonl");
  const given = fs.existsSync(heldOut) ? ["--eval", heldOut] : [];
  execFileSync(aweigh, ["align", "--config", path.join(folder, "config.toml"), "--quiet", "--json",
    "--train", path.join(folder, "train.jsonl"), "--output-dir", out, ...given, ...flags],
  { env: { ...process.env, VK_DRIVER_FILES: driver, AWEIGH_GPU: "SwiftShader" } });
  const read = (name) => fs.readFileSync(path.join(out, name), "utf8");
  return { summary: JSON.parse(read("summary.json")), metrics: rows(read("metrics.jsonl")),
    anchors: rows(read("samples.jsonl")).map(({ ids }) => ids) };
}
