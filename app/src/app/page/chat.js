// Chatting with the model, and flagging its answers.

import { Flags, answerCard } from "./answer.js";
import { field, h } from "./dom.js";
import { manyView } from "./many.js";

/// The usual sampling settings of a conversation.
export const SAMPLING = { temperature: 0.9, top_p: 0.95, max_tokens: 256 };

/// Fields for sampling settings; `read()` returns their values.
export function samplingFields(settings, changed) {
  const number = (key, text, attributes) => {
    const input = h("input", { type: "number", value: settings[key], ...attributes, onchange: () => {
      if (input.checkValidity() && input.value !== "") settings[key] = Number(input.value);
      else input.value = settings[key];
      changed?.();
    } });
    return field(text, input);
  };
  return h("div", { class: "row" },
    number("temperature", "Temperature", { min: 0, max: 5, step: "any" }),
    number("top_p", "Top-p", { min: 0.01, max: 1, step: "any" }),
    number("max_tokens", "Longest answer, in tokens", { min: 1, max: 4096, step: 1 }));
}

/// A choice of the model and its runs. `update(models)` keeps it up to date.
export function modelSelect(value, changed) {
  const select = h("select", { onchange: () => changed(select.value) });
  let before = "";
  function update(models) {
    if (models.join() === before) return;
    before = models.join();
    const name = (model) => (model === "base" ? "the model as it is" : model.replace("run-", "run "));
    select.replaceChildren(...models.map((model) => h("option", { value: model }, name(model))));
    show();
  }
  /// Shows the chosen model; the first one if it is not there any more.
  function show() {
    if (!before) return;
    select.value = before.split(",").includes(value()) ? value() : before.split(",")[0];
    changed(select.value);
  }
  return { select, update, show };
}

export function chatView(app) {
  const flags = new Flags(app);
  const conversation = conversationView(app, flags);
  const many = manyView(app, flags);
  const views = [["One conversation", conversation], ["Many prompts", many]];
  const place = h("div");
  const buttons = views.map(([title, view]) => h("button", { type: "button", onclick: () => choose(view) },
    title));
  let chosen = conversation;
  function choose(view) {
    chosen = view;
    buttons.forEach((button, i) => {
      if (views[i][1] === view) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      button.classList.toggle("main", views[i][1] === view);
    });
    place.replaceChildren(view.element);
    if (app.state) view.update(app.state);
  }
  choose(conversation);
  const note = h("p", { class: "error", hidden: true });
  const element = h("div", { class: "stack" }, h("h2", {}, "Chat"),
    h("div", { class: "row", role: "group", "aria-label": "Kind of chat" }, buttons), note, place);
  function update(state) {
    const { model } = state;
    note.hidden = model.status === "ready" && model.chat;
    if (!note.hidden) {
      note.textContent = {
        opening: "The model is being loaded.", failed: `The model does not answer: ${model.error}`,
        closed: `The model is not on the GPU${model.why ? `: ${model.why}` : ""}.`,
        ready: "This model has no chat template: it cannot chat.",
      }[model.status];
    }
    flags.sync(state).then((changed) => changed && views.forEach(([, view]) => view.flagged()), () => {});
    chosen.update(state);
  }
  return { element, update, leave: () => views.forEach(([, view]) => view.leave()) };
}

/// An id for a conversation.
function newId() {
  return `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
}

function conversationView(app, flags) {
  let chats = [];
  let chat = fresh();
  let running = null;
  let cards = [];
  let ready = false;
  let context = 2048;
  const removed = new WeakSet();
  const saving = new WeakMap();

  function fresh() {
    return { id: newId(), title: "", messages: [], system: "", model: "base", settings: { ...SAMPLING },
      based: 0 };
  }

  const list = h("ul");
  // What is said in it is told once it is whole, by `told`.
  const log = h("div", { class: "log", role: "log", "aria-label": "Conversation", "aria-live": "off",
    tabIndex: 0, onkeydown: key });
  const told = h("p", { class: "unseen", role: "status" });
  const system = h("textarea", { rows: 2, onchange: () => { chat.system = system.value; keep(chat); } });
  const sampling = h("div");
  const which = modelSelect(() => chat.model, (model) => { chat.model = model; });
  const input = h("textarea", { rows: 2, placeholder: "Write to the model", "aria-label": "Your message",
    onkeydown: (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    } });
  const sendButton = h("button", { type: "submit", class: "main" }, "Send");
  const stopButton = h("button", { type: "button", onclick: () => stop(), hidden: true }, "Stop");
  const chips = h("div", { class: "chips" });
  const composer = h("form", { class: "composer stack", onsubmit: (event) => {
    event.preventDefault();
    send();
  } }, h("div", { class: "row" }, h("div", { class: "grow" }, input), sendButton, stopButton),
    h("p", { class: "soft" }, "Enter sends, Shift+Enter begins a new line, Esc stops. In the conversation, ",
      "F flags the last answer and R asks again."));
  const element = h("div", { class: "chat" },
    h("aside", {},
      h("button", { type: "button", onclick: () => { open(fresh()); input.focus(); } }, "New conversation"),
      list),
    h("div", { class: "stack" },
      h("details", { class: "card" }, h("summary", {}, "Settings of this conversation"),
        h("div", { class: "stack" }, field("System message", system), sampling,
          field("Who answers", which.select))),
      log, told, chips, composer));

  async function load() {
    chats = (await app.engine.chats()).map((one) => ({ ...one, based: one.changed }));
    open(chats[0] ?? fresh());
    const prompts = await app.engine.prompts();
    chips.replaceChildren(...prompts.slice(0, 4).map((prompt) => h("button", {
      type: "button", disabled: !ready,
      onclick: () => { input.value = prompt; send(); } }, prompt)));
  }

  function open(next) {
    stop();
    chat = next;
    system.value = chat.system ?? "";
    chat.settings = { ...SAMPLING, ...chat.settings };
    sampling.replaceChildren(samplingFields(chat.settings, () => keep(chat)));
    which.show();
    drawList();
    draw();
  }

  function drawList() {
    list.replaceChildren(...chats.map((one) => h("li", {},
      h("button", { type: "button", "aria-current": one === chat ? "true" : null, onclick: () => open(one) },
        one.title || "Untitled"),
      h("button", { type: "button", class: "plain", "aria-label": `Delete ${one.title}`,
        onclick: () => remove(one) }, "×"))));
  }

  async function remove(one) {
    removed.add(one);
    if (!await app.run(() => app.engine.removeChat(one.id))) return removed.delete(one);
    chats = chats.filter((other) => other !== one);
    if (one === chat) open(chats[0] ?? fresh());
    else drawList();
    one.based = 0;
    app.say("The conversation is deleted; its flags are kept.", ["Undo", async () => {
      removed.delete(one);
      await keep(one);
      drawList();
    }]);
  }

  /// Keeps a conversation, after what is being kept of it already. One without messages is not kept.
  function keep(own) {
    const next = (saving.get(own) ?? Promise.resolve()).then(() => write(own));
    saving.set(own, next);
    return next;
  }

  async function write(own) {
    if (removed.has(own)) return;
    if (!own.messages.length) {
      if (own.based) await app.run(() => app.engine.removeChat(own.id));
      own.based = 0;
      chats = chats.filter((other) => other !== own);
      return drawList();
    }
    if (!chats.includes(own)) {
      chats = [own, ...chats];
      drawList();
    }
    await app.run(async () => {
      const changed = Date.now();
      await app.engine.saveChat({ ...own, changed });
      own.based = changed;
    });
  }

  /// The messages before the `i`-th, as the model reads them.
  function before(own, i) {
    const messages = own.messages.slice(0, i).map(({ role, content }) => ({ role, content }));
    // An answer belongs to the system message with which it was given.
    const system = own.messages[i]?.system ?? own.system;
    return system?.trim() ? [{ role: "system", content: system }, ...messages] : messages;
  }

  function draw() {
    cards = [];
    log.replaceChildren(...chat.messages.map((message, i) => {
      const last = i === chat.messages.length - 1;
      const more = last ? [h("button", { type: "button", onclick: () => again() }, "Ask again")] : [];
      if (message.role === "user") {
        return h("div", { class: "turn user" }, h("p", { class: "who" }, "You"),
          h("div", { class: "text" }, message.content), last ? h("div", { class: "tools" }, more) : "");
      }
      const who = (message.model ?? "base") === "base" ? "Model" : message.model.replace("run-", "Run ");
      const card = answerCard(app, flags, { message, prompt: before(chat, i), who, more,
        number: Math.ceil(i / 2) });
      cards.push(card);
      return card.card;
    }));
    chips.hidden = chat.messages.length > 0;
  }

  function send() {
    const text = input.value.trim();
    if (!text || running) return;
    if (!ready) return app.say("The model does not answer now.");
    input.value = "";
    // A question that has no answer is replaced.
    if (chat.messages.at(-1)?.role === "user") chat.messages.pop();
    chat.title ||= text.slice(0, 60);
    chat.messages.push({ role: "user", content: text });
    answer(null);
  }

  function again() {
    if (running || !chat.messages.length) return;
    if (!ready) return app.say("The model does not answer now.");
    answer(chat.messages.at(-1).role === "assistant" ? chat.messages.pop() : null);
  }

  /// Asks for an answer to the last message. If there is none, `old` stays, or the question can be changed
  /// or asked again.
  async function answer(old) {
    const own = chat;
    const message = { role: "assistant", content: "", model: own.model, system: own.system };
    const prompt = before(own, own.messages.length);
    if (!old) keep(own);
    own.messages.push(message);
    draw();
    const card = cards.at(-1);
    card.tools.hidden = true;
    card.text.textContent = "";
    card.text.classList.add("busy");
    card.card.setAttribute("aria-busy", "true");
    card.card.scrollIntoView({ block: "nearest" });
    running = new AbortController();
    [sendButton.hidden, stopButton.hidden] = [true, false];
    const most = Math.min(own.settings.max_tokens, Math.floor(context / 2));
    const settings = { ...own.settings, max_tokens: most };
    await app.run(async () => {
      // An answer that was stopped is cut.
      message.finish = "length";
      try {
        const { finish } = await app.engine.chat(own.model, prompt, settings, (part) => {
          message.content += part;
          card.text.append(part);
          card.card.scrollIntoView({ block: "nearest" });
        }, running.signal);
        message.finish = finish;
      } catch (error) {
        if (error.name !== "AbortError") throw error;
      }
    });
    running = null;
    [sendButton.hidden, stopButton.hidden] = [false, true];
    if (!message.content) {
      own.messages.pop();
      if (old) own.messages.push(old);
      else if (own === chat && !input.value) input.value = own.messages.pop().content;
    }
    told.textContent = message.content ? `The model has answered: ${message.content}` : "No answer.";
    if (own === chat) draw();
    await keep(own);
  }

  function stop() {
    running?.abort();
  }

  function key(event) {
    const typing = event.target.closest("input, textarea, select");
    if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "f" && !running) cards.at(-1)?.toggle();
    if (event.key === "r") again();
  }
  function escape(event) {
    if (event.key === "Escape") stop();
  }
  addEventListener("keydown", escape);
  app.run(load);

  function update({ model }) {
    ready = model.status === "ready" && model.chat;
    context = model.context ?? context;
    for (const button of [sendButton, ...chips.children]) button.disabled = !ready;
    if (model.status === "ready") which.update(model.models);
  }
  return {
    element, update, flagged: () => cards.forEach((card) => card.draw()),
    leave: () => { stop(); removeEventListener("keydown", escape); },
  };
}
