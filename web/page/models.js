// Adding a model to a tab: its files are copied into the browser's storage.

import { bytes, h } from "./dom.js";

/// The files of a model that are needed: the tokenizer, configurations, templates, licences and the weights.
const NEEDED = /(\.json|\.jinja|\.safetensors|\.model|\.txt|^licen[cs]e.*|^notice.*)$/i;

/// All files of a drop, with the name of the folder that they are in.
async function dropped(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry);
  if (entries.length !== 1 || !entries[0].isDirectory) return null;
  const reader = entries[0].createReader();
  const files = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
    if (!some.length) break;
    for (const entry of some.filter((one) => one.isFile)) {
      files.push(await new Promise((resolve, reject) => { entry.file(resolve, reject); }));
    }
  }
  return { folder: entries[0].name, files };
}

/// A name for files without a folder: the model's own, or "model".
async function named(files) {
  const config = files.find((file) => file.name === "config.json");
  const own = config && await config.text().then(JSON.parse).catch(() => null);
  return own?._name_or_path?.split("/").at(-1) || own?.model_type || "model";
}

/// An element in which the user adds a model with `worker`.
export function zone(worker) {
  return (app, added) => {
    const told = h("div", { "aria-live": "polite" });
    const bar = h("progress", { value: 0, max: 1, hidden: true, "aria-label": "Copying the model" });
    const picker = h("input", { type: "file", multiple: true, id: "model-files",
      "aria-label": "A GGUF file, or the files of a model", onchange: () => {
        take({ files: [...picker.files] });
        picker.value = "";
      } });
    const address = h("input", { type: "text", id: "model-address", placeholder: "models/model.gguf",
      "aria-label": "The address of a GGUF file on this site" });
    const get = h("button", { type: "button",
      onclick: () => work((tell) => worker.fetch(address.value, tell)) }, "Fetch it");
    const drop = h("div", { class: "drop",
      ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
      ondragleave: () => drop.classList.remove("over"),
      ondrop: async (event) => {
        event.preventDefault();
        drop.classList.remove("over");
        const files = [...event.dataTransfer.files];
        take(await dropped(event.dataTransfer.items) ?? { files });
      } },
      h("p", {}, "Drop a GGUF file here, or a folder in Hugging Face's layout (config.json, tokenizer.json, ",
        "*.safetensors), or choose its files. They are copied into this browser's storage."),
      picker, h("details", {}, h("summary", {}, "Or fetch one from this site"),
        h("div", { class: "row" }, address, get)), bar, told);

    async function take({ folder, files }) {
      if (picker.disabled) return undefined;
      const gguf = files.filter((file) => file.name.endsWith(".gguf"));
      if (gguf.length === 1) return work((tell) => worker.add("", gguf, tell));
      const needed = files.filter((file) => NEEDED.test(file.name));
      if (!needed.length) {
        told.replaceChildren(h("p", { class: "error" }, "Expected one GGUF file, or the files of a model in "
          + `Hugging Face's layout; found ${files.map((file) => file.name).join(", ") || "nothing"}.`));
        return undefined;
      }
      const name = folder ?? await named(needed);
      return work((tell) => worker.add(name, needed, tell));
    }

    async function work(copy) {
      [bar.hidden, get.disabled, picker.disabled] = [false, true, true];
      try {
        // Otherwise the browser may remove the files when it is short of space.
        await navigator.storage?.persist?.();
        const name = await copy(({ done, all }) => {
          if (all) [bar.value, bar.max] = [done, all];
          told.replaceChildren(h("p", {}, `Copying: ${bytes(done)}${all ? ` of ${bytes(all)}` : ""}`));
        });
        told.replaceChildren(h("p", {}, `${name} is here.`));
        added(name);
      } catch (error) {
        told.replaceChildren(h("p", { class: "error" }, error.message));
      }
      [bar.hidden, get.disabled, picker.disabled] = [true, false, false];
    }
    return drop;
  };
}
