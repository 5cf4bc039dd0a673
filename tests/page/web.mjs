// Tries the page that runs in a tab, in headless Chromium on SwiftShader's WebGPU.
// node web.mjs URL CHROMIUM PLAYWRIGHT AXE FOLDER

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { accessibility, inTab, say } from "./tools.mjs";

const [url, chromium, playwright, axe, folder] = process.argv.slice(2);
fs.mkdirSync(folder, { recursive: true });
const accessible = accessibility(axe);
const { browser, context, page, outside } = await inTab({ chromium, playwright, url });
await context.grantPermissions(["clipboard-read", "clipboard-write"]);

await page.goto(`${url}check.html`);
await page.getByText("swiftshader", { exact: false }).first().waitFor();
await accessible(page, "before");
await page.getByLabel("Only the smallest shapes").check();
await page.getByRole("button", { name: "Check this GPU" }).click();
await page.getByRole("heading", { name: "It does", exact: true }).waitFor();
await accessible(page, "after");
await page.screenshot({ path: path.join(folder, "check.png"), fullPage: true });
await page.getByRole("button", { name: "Copy the report" }).click();
await page.getByText("Copied.").waitFor();
const report = JSON.parse(await page.evaluate(() => navigator.clipboard.readText()));
assert.equal(report.exact, true);
assert.ok(report.passed >= 50);
assert.equal(report.gpu.backend, "BrowserWebGpu");
assert.match(report.gpu.name, /swiftshader/);
assert.match(report.version, /wasm32-unknown-unknown/);
const [file] = await Promise.all([page.waitForEvent("download"),
  page.getByRole("link", { name: "Save the report" }).click()]);
assert.deepEqual(JSON.parse(fs.readFileSync(await file.path(), "utf8")), report);
say(`${report.passed} checks pass in the tab, in ${report.seconds.toFixed(0)} s`);

// What the worker finds in a browser without WebGPU, and where WebGPU has no GPU.
const worker = await (await context.request.get(`${url}worker.js`)).text();
for (const [change, sentence] of [
  ["Object.defineProperty(navigator, 'gpu', { value: undefined });", "This browser has no WebGPU."],
  ["navigator.gpu.requestAdapter = async () => null;", "there is no GPU that it may use"],
]) {
  const poor = await context.newPage();
  const body = `${change}\n${worker}`;
  await poor.route("**/worker.js", (route) => route.fulfill({ contentType: "text/javascript", body }));
  await poor.goto(`${url}check.html`);
  await poor.getByText(sentence).waitFor();
  assert.equal(await poor.getByRole("button", { name: "Check this GPU" }).isDisabled(), true);
  await accessible(poor, sentence);
  await poor.screenshot({ path: path.join(folder, "without.png") });
  await poor.close();
}
say("without WebGPU, without a GPU: a sentence each");

// A worker that cannot be loaded is told, and not started again by itself.
const broken = await context.newPage();
let asked = 0;
await broken.route("**/worker.js", (route) => {
  asked += 1;
  return route.fulfill({ status: 404, body: "" });
});
await broken.goto(`${url}check.html`);
await broken.getByText("the worker has failed").waitFor();
await broken.waitForTimeout(500);
assert.equal(asked, 1);
await broken.close();
say("without a worker: a sentence");
assert.deepEqual(outside, [], "requests to other sites");
await browser.close();
