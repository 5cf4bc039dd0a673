// An answer with its flag: flag it with a click or a key, say why, mark parts, take it back.

import { h, marked } from "./dom.js";

/// What a flag and an answer share: the prompt's messages and the answer's text.
function keyOf(prompt, content) {
  const messages = typeof prompt === "string" ? prompt : prompt.map((one) => [one.role, one.content]);
  return JSON.stringify([messages, content]);
}

/// The flags, kept up to date.
export class Flags {
  constructor(app) {
    this.app = app;
    this.all = [];
    this.byKey = new Map();
    this.revision = null;
    this.rule = null;
  }

  /// Reads them again if they have changed. Returns whether they had.
  async sync(state) {
    if (!state.flags || state.flags.revision === this.revision) return false;
    const { flags, revision, rule } = await this.app.engine.flags();
    // Empty fields are left out.
    this.all = flags.map((flag) => ({ note: "", parts: [], ...flag }));
    this.byKey = new Map(this.all.map((flag) => [keyOf(flag.prompt, this.text(flag)), flag]));
    [this.revision, this.rule] = [revision, rule];
    return true;
  }

  /// The flagged answer.
  text({ completion }) {
    return typeof completion === "string" ? completion : completion[0].content;
  }

  /// The flag of the answer `content` to `prompt`.
  of(prompt, content) { return this.byKey.get(keyOf(prompt, content)); }

  /// Flags an answer. `finish` is why it ended: no end belongs to one that was cut.
  async add(prompt, content, { note = "", parts = [], model = "", finish = null }) {
    const cut = finish === "length" ? { finish_reason: finish } : {};
    const completion = [{ role: "assistant", content, ...cut }];
    const { id } = await this.app.engine.addFlag({ prompt, completion, note, parts, model });
    this.byKey.set(keyOf(prompt, content), { id, prompt, completion, note, parts, model });
  }

  /// Takes a flag back.
  async remove(flag) {
    await this.app.engine.removeFlag(flag.id);
    this.byKey.delete(keyOf(flag.prompt, this.text(flag)));
  }
}

/// The text that is selected inside `element`.
function selectedIn(element) {
  const selection = getSelection();
  const inside = selection.rangeCount && element.contains(selection.anchorNode)
    && element.contains(selection.focusNode);
  return inside ? selection.toString().trim() : "";
}

/// A card for `message` ({content, model, finish}), the answer to `prompt` (messages). `more` are further
/// buttons.
export function answerCard(app, flags, { message, prompt, who, more = [], number }) {
  const own = () => flags.of(prompt, message.content);
  const text = h("div", { class: "text" });
  const flagButton = h("button", { type: "button", onclick: () => toggle() });
  const note = h("input", { type: "text", placeholder: "Why? (you may leave this empty)",
    "aria-label": "Why this answer is flagged", onchange: () => change(note.value, own()?.parts ?? []) });
  const chips = h("div", { class: "chips" });
  const details = h("div", { class: "stack" },
    h("div", { class: "row" }, h("div", { class: "grow" }, note),
      // Pressing a button must not take the selection away.
      h("button", { type: "button", onmousedown: (event) => event.preventDefault(), onclick: mark },
        "Mark the selected words")), chips);
  const tools = h("div", { class: "tools" }, flagButton, more);
  const card = h("article", { class: "turn", "aria-label": `Answer ${number}` },
    h("p", { class: "who" }, who), text, tools, details);
  let drawn = null;

  async function toggle() {
    const flag = own();
    await app.run(async () => {
      if (flag) {
        await flags.remove(flag);
        const again = () => flags.add(prompt, message.content, { ...message, ...flag }).then(draw);
        app.say("The flag is taken back.", ["Flag it again", again]);
      } else {
        await flags.add(prompt, message.content, message);
        app.say("Flagged.", ["Undo", toggle]);
      }
    });
    draw();
  }

  async function change(words, parts) {
    const flag = own();
    if (!flag) return;
    const done = await app.run(() => app.engine.changeFlag(flag.id, words, parts));
    if (done) Object.assign(flag, { note: words, parts });
    draw();
  }

  function mark() {
    const part = selectedIn(text);
    const flag = own();
    if (!part) return app.say("Select the words in the answer first.");
    if (flag && !flag.parts.includes(part)) change(note.value, [...flag.parts, part]);
  }

  /// Shows the flag as it is; nothing that has not changed is touched.
  function draw() {
    if (card.hasAttribute("aria-busy")) return;
    const flag = own();
    const key = JSON.stringify([message.content, flag?.note, flag?.parts]);
    if (key === drawn) return;
    drawn = key;
    card.classList.toggle("flagged", Boolean(flag));
    flagButton.setAttribute("aria-pressed", String(Boolean(flag)));
    flagButton.textContent = flag ? "Flagged" : "Flag";
    flagButton.disabled = !message.content.trim();
    const parts = flag?.parts ?? [];
    text.replaceChildren(...marked(message.content || "(an empty answer)", parts));
    details.hidden = !flag;
    if (document.activeElement !== note) note.value = flag?.note ?? "";
    chips.replaceChildren(...parts.map((part) => h("button", { type: "button",
      "aria-label": `Remove the mark on ${part}`,
      onclick: () => change(note.value, parts.filter((other) => other !== part)) }, `${part} ×`)));
  }
  draw();
  return { card, draw, toggle, text, tools };
}
