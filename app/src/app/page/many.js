// One prompt after another, each in a conversation of its own: the quickest way to many flags.

import { answerCard } from "./answer.js";
import { SAMPLING, modelSelect, samplingFields } from "./chat.js";
import { check, field, h, of } from "./dom.js";
import { ruleField } from "./rule.js";

/// Requests at the same time.
const AT_ONCE = 4;

export function manyView(app, flags) {
  const settings = { ...SAMPLING };
  let model = "base";
  let running = null;
  let cards = [];
  let ready = false;
  let context = 2048;
  let flagging = false;
  let searched = {};
  const prompts = h("textarea", { rows: 8 });
  const samples = h("input", { type: "number", min: 1, max: 8, step: 1, value: 1 });
  const which = modelSelect(() => model, (name) => { model = name; });
  const ask = h("button", { type: "submit", class: "main" }, "Ask");
  const stop = h("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const told = h("p", { class: "soft", role: "status" });
  const log = h("div", { class: "log" });
  const rule = ruleField(app, flags, "Words of the habit, as a rule (made of the words that you mark, or "
    + "your own)");
  const counted = h("p", { class: "soft", role: "status" });
  const only = check("Show only answers with the habit", { onchange: () => app.run(find) });
  const flagAll = h("button", { type: "button", disabled: true, onclick: flagThem }, "Flag them");
  const finder = h("div", { class: "card stack", hidden: true }, h("h3", {}, "Find the habit"), rule.element,
    only.label, h("div", { class: "row" }, flagAll, h("div", { class: "grow" }, counted)));
  const form = h("form", { class: "card stack", onsubmit: (event) => {
    event.preventDefault();
    start();
  } },
    field("Prompts, one a line", prompts), samplingFields(settings),
    h("div", { class: "row" }, field("Answers to each", samples), field("Who answers", which.select)),
    h("div", { class: "row" }, ask, stop, h("div", { class: "grow" }, told)));
  const element = h("div", { class: "stack" }, form, finder, log);

  async function load() {
    prompts.value = (await app.engine.prompts()).join("\n");
  }
  app.run(load);

  async function start() {
    const lines = prompts.value.split("\n").map((line) => line.trim()).filter((line) => line);
    const each = Math.min(8, Math.max(1, Number(samples.value) || 1));
    if (!lines.length) return app.say("Write a prompt first.");
    if (!ready || running) return app.say("The model does not answer now.");
    const asked = lines.flatMap((line) => Array(each).fill(line));
    const own = new AbortController();
    running = own;
    cards = [];
    log.replaceChildren();
    finder.hidden = true;
    [ask.hidden, stop.hidden] = [true, false];
    let done = 0;
    const next = asked.entries();
    const work = async () => {
      for (const [, line] of next) {
        await one(line, own.signal);
        done += 1;
        told.textContent = `${done} of ${of(asked.length, "answer")}`;
      }
    };
    const all = await Promise.allSettled(Array.from({ length: AT_ONCE }, () =>
      work().catch((error) => { own.abort(); throw error; })));
    const failed = all.find((one) => one.reason && one.reason.name !== "AbortError");
    if (failed) app.say(failed.reason.message);
    running = null;
    [ask.hidden, stop.hidden] = [false, true];
    finder.hidden = !cards.length;
    await app.run(find);
  }

  /// Looks for the habit in the answers, by the rule.
  async function find() {
    if (finder.hidden) return;
    rule.draw();
    const [own, wanted] = [cards, flags.rule];
    if (searched.cards !== own || searched.rule !== wanted) {
      const matches = await app.engine.matches(own.map((card) => card.message.content));
      // Other answers, or another rule, by now.
      if (own !== cards || wanted !== flags.rule) return;
      own.forEach((card, i) => { card.has = matches[i] && Boolean(card.message.content.trim()); });
      searched = { cards: own, rule: wanted };
    }
    own.forEach((card) => { card.card.hidden = only.input.checked && Boolean(wanted) && !card.has; });
    const found = own.filter((card) => card.has);
    const left = found.filter((card) => !card.isFlagged()).length;
    counted.textContent = wanted ? `${found.length} of ${of(own.length, "answer")} have it, ${
      found.length - left} of them flagged.` : "No words are marked yet.";
    flagAll.textContent = `Flag ${left === found.length ? "them" : "the others"}`;
    flagAll.disabled = !left || flagging;
  }

  /// Flags all answers with the habit that are not flagged.
  async function flagThem() {
    const added = [];
    let failed = "";
    [flagging, flagAll.disabled] = [true, true];
    try {
      for (const card of cards.filter((one) => one.has)) {
        // The model may have given the same answer twice.
        if (card.isFlagged()) continue;
        await flags.add(card.prompt, card.message.content, card.message);
        added.push(card);
      }
    } catch (error) {
      failed = ` Then: ${error.message}`;
    }
    flagging = false;
    const undo = async () => {
      for (const { prompt, message } of added) {
        const flag = flags.of(prompt, message.content);
        if (flag) await flags.remove(flag);
      }
    };
    app.say(`${of(added.length, "answer")} flagged.${failed}`, added.length ? ["Undo", undo] : undefined);
    await app.refresh();
    await find().catch(() => {});
  }

  async function one(line, signal) {
    const prompt = [{ role: "user", content: line }];
    const message = { role: "assistant", content: "", model };
    const most = { ...settings, max_tokens: Math.min(settings.max_tokens, Math.floor(context / 2)) };
    const { text, finish } = await app.engine.chat(model, prompt, most, () => {}, signal);
    Object.assign(message, { content: text, finish });
    const card = answerCard(app, flags, { message, prompt, who: line, number: cards.length + 1 });
    cards.push({ ...card, prompt, message, isFlagged: () => Boolean(flags.of(prompt, text)) });
    log.append(card.card);
  }

  return {
    element,
    update(state) {
      ready = state.model.status === "ready" && state.model.chat;
      context = state.model.context ?? context;
      ask.disabled = !ready;
      if (state.model.status === "ready") which.update(state.model.models);
    },
    flagged: () => {
      cards.forEach((card) => card.draw());
      find().catch(() => {});
    },
    leave: () => running?.abort(),
  };
}
