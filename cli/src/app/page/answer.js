// An answer with its flag: flag it with a click or a key, say why, mark parts, take it back.

import { h, marked } from "./dom.js";

/// The flags, kept up to date.
export class Flags {
  constructor(app) {
    this.app = app;
    this.byId = new Map();
    this.revision = null;
    this.rule = null;
  }

  /// Reads them again if they have changed. Returns whether they had.
  async sync(state, force) {
    if (!state.flags || (!force && state.flags.revision === this.revision)) return false;
    const { flags, revision, rule } = await this.app.engine.flags();
    // Empty fields are left out.
    this.byId = new Map(flags.map((flag) => [flag.id, { note: "", parts: [], ...flag }]));
    [this.revision, this.rule] = [revision, rule];
    return true;
  }
}

/// The text that is selected inside `element`.
function selectedIn(element) {
  const selection = getSelection();
  const inside = selection.rangeCount && element.contains(selection.anchorNode)
    && element.contains(selection.focusNode);
  return inside ? selection.toString().trim() : "";
}

/// A card for `message` ({content, flag, model}), the answer to `prompt` (messages). `changed` is called when
/// its flag was set or taken back; `more` are further buttons.
export function answerCard(app, flags, { message, prompt, who, changed, more = [], number }) {
  const text = h("div", { class: "text" });
  const flagButton = h("button", { type: "button", onclick: () => toggle() });
  const details = h("div", { class: "stack" });
  const tools = h("div", { class: "tools" }, flagButton, more);
  const card = h("article", { class: "turn", "aria-label": `Answer ${number}` },
    h("p", { class: "who" }, who), text, tools, details);
  const own = () => flags.byId.get(message.flag);

  async function toggle() {
    const flag = own();
    await app.run(async () => {
      if (flag) {
        await app.engine.removeFlag(flag.id);
        message.flag = null;
        app.say("The flag is taken back.", ["Flag it again", () => add(flag)]);
      } else {
        await add({ note: "", parts: [] });
        app.say("Flagged.", ["Undo", toggle]);
      }
      await changed();
    });
    draw();
  }

  async function add({ note, parts }) {
    const completion = [{ role: "assistant", content: message.content }];
    const { id } = await app.engine.addFlag({ prompt, completion, note, parts, model: message.model ?? "" });
    message.flag = id;
    flags.byId.set(id, { id, prompt, completion, note, parts });
    await changed();
    draw();
  }

  async function change(note, parts) {
    const flag = own();
    const done = await app.run(() => app.engine.changeFlag(flag.id, note, parts));
    if (done) Object.assign(flag, { note, parts });
    draw();
  }

  function mark() {
    const part = selectedIn(text);
    const flag = own();
    if (!part) return app.say("Select the words in the answer first.");
    if (!flag.parts.includes(part)) change(flag.note, [...flag.parts, part]);
  }

  function draw() {
    const flag = own();
    card.classList.toggle("flagged", Boolean(flag));
    flagButton.setAttribute("aria-pressed", String(Boolean(flag)));
    flagButton.textContent = flag ? "Flagged" : "Flag";
    text.replaceChildren(...marked(message.content || "(an empty answer)", flag?.parts ?? []));
    flagButton.disabled = !message.content.trim();
    if (!flag) return details.replaceChildren();
    const note = h("input", { type: "text", value: flag.note, placeholder: "Why? (you may leave this empty)",
      "aria-label": "Why this answer is flagged", onchange: () => change(note.value, own().parts) });
    details.replaceChildren(
      h("div", { class: "row" }, h("div", { class: "grow" }, note),
        // Pressing a button must not take the selection away.
        h("button", { type: "button", onmousedown: (event) => event.preventDefault(), onclick: mark },
          "Mark the selected words")),
      flag.parts.length ? h("div", { class: "chips" }, flag.parts.map((part) =>
        h("button", { type: "button", "aria-label": `Remove the mark on ${part}`,
          onclick: () => change(own().note, own().parts.filter((other) => other !== part)) }, `${part} ×`)))
        : "");
  }
  draw();
  return { card, draw, toggle, text, tools };
}
