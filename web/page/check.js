// Does this browser compute correctly on this GPU? The self-test, in a worker.

import { check as box, h, of, redraw, seconds } from "./dom.js";
import { Worker } from "./calls.js";

const main = document.getElementById("main");
const status = document.getElementById("status");

const quick = box("Only the smallest shapes: seconds");
const begin = h("button", { type: "submit", class: "main" }, "Check this GPU");
const progress = h("progress", { value: 0, max: 1, hidden: true, "aria-label": "Checks done" });
const told = h("p", { role: "status" });
const at = h("p", { class: "soft" });
const failures = h("div");
const result = h("section", { class: "card stack", hidden: true });
const form = h("form", { class: "card stack", onsubmit: (event) => {
  event.preventDefault();
  check();
} },
  h("p", {}, "Every kernel of Aweigh, forward and backward, and the gradients of a small model run on your ",
    "GPU in this tab, and are compared with the same formulas in double precision. Nothing is sent."),
  quick.label, h("div", { class: "row" }, begin, progress, at), told, failures);
main.append(h("div", { class: "stack" }, h("h2", {}, "Does your GPU compute correctly?"), form, result));

const worker = new Worker();

async function check() {
  [begin.disabled, progress.hidden, result.hidden] = [true, false, true];
  failures.replaceChildren();
  [told.textContent, at.textContent] = ["", "Loading"];
  let done = 0;
  try {
    const found = await worker.selftest(quick.input.checked, ({ row, all }) => {
      done += 1;
      [progress.value, progress.max] = [done, all];
      at.textContent = `${done} of ${of(all, "check")}: ${row.name}`;
      if (!row.passed) failures.append(h("p", { class: "error" }, `${row.name}: ${row.failure}`));
    });
    told.textContent = `${found.verdict} It took ${seconds(found.report.seconds)}.`;
    show(found);
  } catch (error) {
    told.replaceChildren(h("span", { class: "error" }, error.message));
  }
  [begin.disabled, progress.hidden, at.textContent] = [false, true, ""];
}

function show({ report }) {
  const text = `${JSON.stringify(report, null, 2)}\n`;
  const file = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const copied = h("span", { role: "status" });
  const copy = async () => {
    const kept = await navigator.clipboard.writeText(text).then(() => true, () => false);
    copied.textContent = kept ? "Copied." : "It could not be copied: save it.";
  };
  redraw(result, [h("h3", {}, report.exact ? "It does" : "It does not"),
    h("p", { class: "soft" }, "The report has the browser's name, the number of cores, the GPU, Aweigh's ",
      "version and the results, and nothing else. Attach it to an issue with the form \"It ran on my GPU\"."),
    h("div", { class: "row" }, h("button", { type: "button", onclick: copy }, "Copy the report"),
      h("a", { class: "button", href: file, download: "browser.selftest.json" }, "Save the report"), copied),
    h("details", {}, h("summary", {}, "The report"), h("pre", {}, text))]);
  result.hidden = false;
}

status.textContent = await worker.gpu().then((name) => name, (error) => {
  told.replaceChildren(h("span", { class: "error" }, error.message));
  begin.disabled = true;
  return "";
});
