// Choosing a model.

import { bytes, count, field, h, of, redraw, where } from "./dom.js";

/// How a size compares with the memory there is.
function fits(size, described) {
  if (described.memory === null) return "compare it with your GPU's memory, which no graphics API tells";
  if (size > described.memory) return "more than this machine has";
  if (size > described.free) return `${bytes(described.free)} are free: close other programs`;
  return `fits: ${bytes(described.free)} are free`;
}

export function modelView(app) {
  const name = h("input", { type: "text", id: "model-name", autocomplete: "off", spellcheck: false });
  const list = h("ul", { class: "chips" });
  const about = h("div", { "aria-live": "polite" });
  const open = h("button", { type: "submit", class: "main" }, "Open");
  const look = h("button", { type: "button", onclick: () => describe() }, "What does it take?");
  const current = h("div");
  const first = h("div", { class: "card" },
    h("h3", {}, "New here?"),
    h("p", {}, "Begin with the built-in model: a help desk that is rude a third of the time. Ask it, flag ",
      "the rude answers, press Align. It takes three minutes and needs no download."),
    h("button", { type: "button", class: "main", onclick: () => choose("tiny", "chat") },
      "Open the built-in model"));
  const form = h("form", { class: "stack", onsubmit: (event) => {
    event.preventDefault();
    choose(name.value);
  } },
    app.place.models?.(app, (added) => { name.value = added; describe(); load(); }),
    field(app.place.models ? "A model that is here"
      : "A folder, a GGUF file, or a name on the Hugging Face Hub (owner/name)", name),
    h("div", { class: "row" }, open, look), about);
  const element = h("div", { class: "stack" },
    h("h2", {}, "Model"), current, first,
    h("div", { class: "card stack" }, h("h3", {}, "Your own model"), form,
      h("div", {}, h("p", { class: "soft" }, app.place.local ? "Already on this machine:" : "Already here:"),
        list)));

  async function choose(wanted, next) {
    if (!wanted.trim()) return app.say("Give a model's name first.");
    await app.run(() => app.engine.openModel(wanted));
    if (next && app.state?.project) app.go(next);
  }

  async function describe() {
    if (!name.value.trim()) return app.say("Give a model's name first.");
    about.replaceChildren(h("p", { class: "busy" }, "Reading"));
    try {
      const of = await app.engine.describe(name.value);
      about.replaceChildren(h("dl", {},
        h("dt", {}, "family"), h("dd", {}, of.family),
        h("dt", {}, "parameters"), h("dd", {}, count(of.parameters)),
        h("dt", {}, "context"), h("dd", {}, `${count(of.context)} tokens`),
        h("dt", {}, "GPU"), h("dd", {}, of.gpu || "this browser's"),
        h("dt", {}, "to chat"), h("dd", {}, `${bytes(of.to_chat)}; ${fits(of.to_chat, of)}`),
        h("dt", {}, "to align"), h("dd", {}, `up to ${bytes(of.to_align)}; ${fits(of.to_align, of)}`)),
        of.chat ? "" : h("p", { class: "error" },
          "This model has no chat template: it cannot be chatted with here. Choose one that is made for ",
          "conversations, often called \"Instruct\"."));
    } catch (error) {
      about.replaceChildren(h("p", { class: "error" }, error.message));
    }
  }

  async function load() {
    const models = await app.engine.models();
    list.replaceChildren(...models.map((known) => h("li", {}, h("button", {
      type: "button", onclick: () => {
        name.value = known.name;
        describe();
      } }, known.name, h("span", { class: "soft" },
        ` ${known.place}${known.flags ? `, ${of(known.flags, "flag")}` : ""}`)),
      app.place.remove && known.added ? h("button", { type: "button", class: "plain",
        "aria-label": `Remove ${known.name}`, onclick: () => remove(known.name) }, "×") : null)));
  }
  app.run(load);

  async function remove(known) {
    if (!confirm(`Remove ${known} from this browser? Its conversations, flags and runs stay.`)) return;
    await app.run(() => app.place.remove(known));
    load();
  }

  let before = "";
  function update({ model, project, last, folder, project_folder }) {
    const key = JSON.stringify([model, project]);
    if (key === before) return;
    before = key;
    const close = h("button", { type: "button", onclick: () => app.run(() => app.engine.closeModel()) },
      "Take it off the GPU");
    const reopen = (text, which) => h("button", { type: "button", class: "main",
      onclick: () => choose(which) }, text);
    const parts = [];
    if (!project && last) {
      parts.push(h("p", {}, `You used ${last} last.`), reopen("Open it again", last));
    } else if (model.status === "opening") {
      const bar = h("progress", model.total ? { value: model.done, max: model.total } : {});
      bar.setAttribute("aria-label", "Loading");
      parts.push(h("p", {}, model.file
        ? `${project}: downloading ${model.file}, ${bytes(model.done)} of ${bytes(model.total)}`
        : `${project}: loading`), bar, h("p", {}, close));
    } else if (model.status === "ready") {
      parts.push(h("p", {}, h("strong", {}, project), ` is open: ${count(model.parameters)} parameters, `,
        `conversations of up to ${count(model.context)} tokens.`),
        h("p", { class: "soft" }, `Conversations, flags and runs are ${where(app.place, project_folder)}`),
        h("div", { class: "row" }, h("a", { class: "button", href: "#chat" }, "Chat with it"), close));
      if (!model.chat) parts.push(h("p", { class: "error" }, "It has no chat template: it cannot chat."));
    } else if (model.status === "failed") {
      parts.push(h("p", {}, `${project} could not be opened.`), h("p", { class: "error" }, model.error),
        reopen("Try again", project));
    } else if (project) {
      parts.push(h("p", {}, `${project} is not on the GPU${model.why ? `: ${model.why}` : ""}.`),
        reopen("Open it again", project));
    } else {
      parts.push(h("p", { class: "soft" }, `Your files will be ${where(app.place, folder)}`));
    }
    current.className = "card";
    redraw(current, parts);
    first.hidden = Boolean(project);
    open.disabled = model.status === "opening";
  }
  return { element, update };
}
