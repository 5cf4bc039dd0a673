// What the scripts that drive the pages share.

import assert from "node:assert/strict";
import fs from "node:fs";
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
