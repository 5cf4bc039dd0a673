// Taking the result away.

import { runSelect } from "./compare.js";
import { bytes, h, redraw } from "./dom.js";

/// Kind, title, what it is for.
const KINDS = [
  ["adapter", "PEFT adapter",
    "What training has changed, as PEFT and vLLM load it. It is made with every run."],
  ["ollama", "For Ollama",
    "The merged model as a GGUF file, with a Modelfile: template, stop tokens, parameters."],
  ["gguf", "GGUF", "The merged model in one file, for llama.cpp, LM Studio and others."],
  ["gguf-q8", "GGUF, 8 bits", "The same, smaller."],
  ["gguf-adapter", "GGUF adapter", "The change alone: llama-server -m MODEL.gguf --lora adapter.gguf"],
  ["merged", "Merged model", "A folder in Hugging Face's layout, for transformers, vLLM and others."],
  ["records", "Records",
    "What the run was given and what it measured: settings, metrics, answers, flags. Made with every run."],
  ["report", "Report", "What the run did, as one page that needs no network."],
];
const NAMES = { ollama: "ollama", gguf: "model.gguf", "gguf-q8": "model-q8_0.gguf",
  "gguf-adapter": "adapter.gguf", merged: "model", report: "report.html" };

/// How to use what is at `path`.
function use(kind, path) {
  return {
    adapter: `PeftModel.from_pretrained(model, ${JSON.stringify(path)})`,
    ollama: `ollama create my-model -f "${path}/Modelfile" && ollama run my-model`,
    gguf: `llama-cli -m "${path}"`, "gguf-q8": `llama-cli -m "${path}"`,
    "gguf-adapter": `llama-cli -m MODEL.gguf --lora "${path}"`,
    merged: `AutoModelForCausalLM.from_pretrained(${JSON.stringify(path)})`,
  }[kind];
}

export function takeView(app) {
  let run = null;
  const which = runSelect(app, (id) => { run = id; show(); });
  const none = h("p", {}, "No run has ended yet. ", h("a", { href: "#align" }, "Align first"), ".");
  const list = h("div", { class: "cards" });
  const body = h("div", { class: "stack" },
    h("label", {}, h("span", {}, "The result of"), which.select), list);
  const element = h("div", { class: "stack" }, h("h2", {}, "Take away"), none, body);
  let shown = "";

  async function show() {
    if (run === null) return;
    const { work } = app.state ?? {};
    const of = work && work.run === run ? [work.what, work.ended, work.error] : [!work || work.ended];
    const key = JSON.stringify([run, of]);
    if (key === shown) return;
    shown = key;
    const { exports } = await app.engine.run(run);
    const cards = KINDS.map(([kind, title, text]) => card(kind, title, text, exports, work));
    redraw(list, cards);
  }

  function card(kind, title, text, exports, work) {
    const made = exports.find((one) => one.name === (NAMES[kind] ?? kind));
    const mine = work && work.run === run && work.what === kind;
    const busy = work && !work.ended;
    const parts = [h("h3", {}, title), h("p", {}, text)];
    if (made) {
      const path = app.place.local ? made.path : made.name;
      const links = made.folder ? made.files.map((name) => [name, app.engine.fileLink(run, made.name, name)])
        : [[made.name, app.engine.fileLink(run, made.name)]];
      const at = app.place.local ? ` at ${path}` : "";
      parts.push(h("p", { class: "soft" }, `${bytes(made.bytes)}${at}`));
      if (use(kind, path)) parts.push(h("pre", { class: "wrap" }, use(kind, path)));
      parts.push(h("p", {}, links.map(([name, link]) => [h("a", link, name), " "])));
      if (made.folder && !app.place.local && kind !== "records") {
        parts.push(h("p", { class: "soft" }, `Save all of them into a folder ${made.name}.`));
      }
      if (kind === "report" && app.place.local) {
        parts.push(h("p", {}, h("a", { href: app.engine.reportUrl(run), target: "_blank" },
          "Open it in a new tab")));
      }
    }
    if (mine && busy) parts.push(h("p", { class: "busy" }, "Being made"));
    if (mine && work.error) parts.push(h("p", { class: "error" }, work.error));
    if (kind !== "adapter" && kind !== "records") {
      parts.push(h("button", { type: "button", disabled: Boolean(busy), "aria-label":
        `${made ? "Make it again" : "Make it"}: ${title}`,
        onclick: () => app.run(() => app.engine.exportRun(run, kind)) }, made ? "Make it again" : "Make it"));
    }
    return h("section", { class: "card" }, parts);
  }

  return {
    element,
    update() {
      none.hidden = run !== null;
      body.hidden = run === null;
      which.update().catch(() => {});
      show().catch(() => { shown = ""; });
    },
  };
}
