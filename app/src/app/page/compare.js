// Before and after, side by side and in figures.

import { Flags } from "./answer.js";
import { SAMPLING, samplingFields } from "./chat.js";
import { field, check, h } from "./dom.js";
import { ruleField } from "./rule.js";

/// A choice of the runs that have ended. `changed` gets the chosen one's id, or null if there is none.
export function runSelect(app, changed) {
  const select = h("select", { onchange: () => changed(Number(select.value)) });
  let known = null;
  async function update() {
    const ended = (await app.engine.runs()).filter((run) => run.stage === "finished").map((run) => run.id);
    if (ended.join() === known) return;
    known = ended.join();
    const before = Number(select.value);
    select.replaceChildren(...ended.map((id) => h("option", { value: id }, `run ${id}`)));
    if (ended.includes(before)) select.value = before;
    changed(ended.length ? Number(select.value) : null);
  }
  return { select, update };
}

export function compareView(app) {
  let run = null;
  let pair = null;
  let waiting = null;
  const settings = { ...SAMPLING };
  const which = runSelect(app, (id) => { run = id; redraw(); });
  const prompt = h("textarea", { rows: 2 });
  const blind = check("Blind: do not tell which answer is which", { checked: true });
  const ask = h("button", { type: "submit", class: "main" }, "Ask both");
  const place = h("div", { "aria-live": "polite" });
  const tally = h("div");
  const figures = h("div", { class: "stack" });
  const none = h("p", {}, "No run has ended yet. ", h("a", { href: "#align" }, "Align first"), ".");
  const form = h("form", { class: "card stack", onsubmit: (event) => {
    event.preventDefault();
    both();
  } }, h("h3", {}, "Side by side"), field("A prompt of your own", prompt), blind.label,
    h("details", {}, h("summary", {}, "Sampling"), h("div", {}, samplingFields(settings))),
    h("div", { class: "row" }, ask,
      h("button", { type: "button", onclick: suggest }, "Another prompt")), place, tally);
  const samples = h("input", { type: "number", min: 1, max: 16, step: 1, value: 1 });
  const measure = h("button", { type: "submit", class: "main" }, "Measure");
  const cancel = h("button", { type: "button", hidden: true, onclick: () => app.run(() =>
    app.engine.cancelWork()) }, "Cancel");
  const progress = h("div");
  const measuring = h("form", { class: "card stack", onsubmit: (event) => {
    event.preventDefault();
    app.run(async () => {
      if (await rule.kept()) await app.engine.compare(run, { num_samples: Number(samples.value) || 1 });
    });
  } }, h("h3", {}, "In figures"),
    h("p", { class: "soft" }, "Both answer the same prompts, flagged ones that were held out and ordinary ",
      "ones apart. Meters count what is bad in the answers. No single meter is a reliable measure."),
    h("div", { class: "row" }, field("Answers to each prompt", samples)));
  const flags = new Flags(app);
  const rule = ruleField(app, flags, "Words of the unwanted habit: the model's rule, as a meter of its own");
  measuring.append(rule.element, h("div", { class: "row" }, measure, cancel), progress);
  const body = h("div", { class: "stack" }, field("Compare the model as it is with", which.select), form,
    measuring, figures);
  const element = h("div", { class: "stack" }, h("h2", {}, "Compare"), none, body);

  let prompts = [];
  app.run(async () => {
    prompts = await app.engine.prompts();
    suggest();
  });

  function suggest() {
    prompt.value = prompts[Math.floor(Math.random() * prompts.length)] ?? "";
  }

  async function both() {
    const text = prompt.value.trim();
    if (!text) return app.say("Write a prompt first.");
    const own = run;
    waiting = new AbortController();
    ask.disabled = true;
    place.replaceChildren(h("p", { class: "busy" }, "Both answer"));
    const seed = Math.floor(Math.random() * 2 ** 31);
    const messages = [{ role: "user", content: text }];
    const of = (model) => app.engine.chat(model, messages, { ...settings, seed }, () => {}, waiting.signal);
    const ok = await app.run(async () => {
      const [before, after] = await Promise.all([of("base"), of(`run-${own}`)]);
      const sides = [["before", before.text], ["after", after.text]];
      if (blind.input.checked && Math.random() < 0.5) sides.reverse();
      pair = { run: own, prompt: text, before: before.text, after: after.text, sides,
        blind: blind.input.checked, choice: null };
    });
    waiting = null;
    if (ok) drawPair();
    else place.replaceChildren();
  }

  function drawPair() {
    const { sides, choice } = pair;
    const names = { before: "Before", after: `After run ${pair.run}` };
    const title = (i) => (pair.blind && !choice ? `Answer ${"AB"[i]}` : names[sides[i][0]]);
    place.replaceChildren(
      h("div", { class: "pair" }, sides.map(([, text], i) => h("section", { class: "turn" },
        h("p", { class: "who" }, title(i)), h("div", { class: "text" }, text || "(an empty answer)")))),
      choice ? h("p", {}, { before: "You prefer the answer before the run.",
        after: "You prefer the answer after the run.", same: "You prefer neither." }[choice])
        : h("div", { class: "tools", role: "group", "aria-label": "Which answer is better?" },
          h("button", { type: "button", onclick: () => vote(sides[0][0]) }, `${title(0)} is better`),
          h("button", { type: "button", onclick: () => vote("same") }, "Neither"),
          h("button", { type: "button", onclick: () => vote(sides[1][0]) }, `${title(1)} is better`)));
  }

  function vote(choice) {
    if (pair.voted) return;
    pair.voted = true;
    const { run: of, prompt: text, before, after, blind: unseen } = pair;
    const own = pair;
    app.run(async () => {
      drawTally(await app.engine.vote({ run: of, prompt: text, before, after, choice, blind: unseen }));
      own.choice = choice;
      if (own === pair) drawPair();
    }).then((kept) => { own.voted = kept; });
  }

  function drawTally(votes) {
    const words = ({ before, after, same, share }) => {
      const all = before + after + same;
      const percent = (value) => `${Math.round(100 * value)}%`;
      return `${all} compared: ${after} for after, ${before} for before, ${same} neither`
        + (share ? `; after is preferred in ${percent(share.value)} [${percent(share.low)}, ${
          percent(share.high)}]` : "");
    };
    const total = ({ before, after, same }) => before + after + same;
    tally.replaceChildren(...[["Blind", votes.blind], ["Open", votes.open]].filter(([, own]) => total(own))
      .map(([name, own]) => h("p", { class: "soft" }, `${name}: ${words(own)}`)));
  }

  let shown = "";
  async function redraw() {
    if (run === null) return;
    const details = await app.engine.run(run);
    drawTally(details.votes);
    const key = JSON.stringify(details.comparison);
    if (key === shown) return;
    shown = key;
    figures.replaceChildren(...(details.comparison ?? []).map(comparison));
  }

  let ended = true;
  return {
    element,
    update(state) {
      const { work, model } = state;
      flags.sync(state).then((changed) => changed && rule.draw(), () => {});
      none.hidden = run !== null;
      body.hidden = run === null;
      const answers = model.status === "ready" && model.models.includes(`run-${run}`);
      ask.disabled = !answers || Boolean(waiting);
      const mine = work && work.run === run && work.what === "compare";
      const going = mine && !work.ended;
      measure.disabled = Boolean(work && !work.ended);
      cancel.hidden = !going;
      if (going) {
        const bar = h("progress", work.total ? { value: work.done, max: work.total } : {});
        bar.setAttribute("aria-label", "Progress of this part");
        progress.replaceChildren(h("p", {}, work.part ? `${work.part}: ${work.done} of ${work.total}`
          : "Loading"), bar);
      } else if (mine && work.error) {
        progress.replaceChildren(h("p", { class: "error" }, work.error));
      } else progress.replaceChildren();
      if (!ended && !going) redraw().catch(() => {});
      ended = !going;
      which.update().catch(() => {});
    },
    leave: () => waiting?.abort(),
  };
}

/// One set's table, in words, and some answers.
function comparison(set) {
  return h("section", { class: "card" }, h("h3", {}, set.name),
    h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "figure"),
        set.candidates.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, set.rows.map(([name, cells]) => h("tr", {}, h("td", {}, name),
        cells.map(([value, interval]) => h("td", { class: "number" }, value,
          interval ? h("small", {}, interval) : null))))))),
    set.conclusions.map((text) => h("p", { class: "soft" }, `${text}.`)),
    h("details", {}, h("summary", {}, "Answers"),
      h("div", {}, set.answers.map(([prompt, answers]) => [h("p", { class: "asked" }, prompt),
        h("div", { class: "answers" }, answers.map(([name, answer]) =>
          h("div", { class: "text" }, h("b", {}, name), answer || "(empty)")))]))));
}
