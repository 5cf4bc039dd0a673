// Runs: what one will take, how it goes, what it did.

import { Flags } from "./answer.js";
import { bytes, chart, check, field, h, of, redraw, seconds, where } from "./dom.js";
import { ruleField } from "./rule.js";

const GOING = ["loading", "running", "pausing", "finishing"];

/// The words for a run's stage.
export function stageWords(stage) {
  return { loading: "loading the model", running: "running", pausing: "saving its state", paused: "paused",
    finishing: "ending with its best state", finished: "finished", failed: "failed" }[stage];
}

export function alignView(app) {
  const flags = new Flags(app);
  const many = h("p");
  const table = h("div");
  const picker = h("input", { type: "file", id: "import", "aria-label": "A file of flagged answers",
    onchange: () => {
      [...picker.files].forEach(take);
      picker.value = "";
    } });
  const told = h("div", { "aria-live": "polite" });
  const drop = h("div", { class: "drop",
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      [...event.dataTransfer.files].forEach(take);
    } },
    h("p", {}, "Drop a file of flagged answers here, or choose one: JSONL, JSON",
      app.place.local ? ", CSV or Parquet" : " or CSV", " in TRL's forms, ShareGPT, Alpaca, Open WebUI's ",
      "feedback."), picker, told);

  const preset = h("select", { onchange: replan },
    h("option", { value: "" }, "a habit that the model shows now and then"),
    h("option", { value: "refuse" }, "harmful requests that it should refuse"),
    h("option", { value: "paper" }, "the constants of the D²O paper"));
  const steps = h("input", { type: "number", min: 1, step: 1, placeholder: "by the number of flags",
    onchange: replan });
  const rule = ruleField(app, flags, "Words of the unwanted habit, as a rule. It counts the habit in "
    + "held-out answers and keeps answers with it out of the anchors. Without it, the model's own answers "
    + "all count as good ones.");
  const more = h("textarea", { class: "code", rows: 5, spellcheck: false, onchange: replan,
    placeholder: "[train]\nlearning_rate = 1e-4" });
  const keepChat = check("Keep chatting during the run (takes more memory)", { checked: true });
  const plan = h("div", { "aria-live": "polite" });
  const begin = h("button", { type: "submit", class: "main" }, "Align");
  const form = h("form", { class: "card stack", onsubmit: (event) => {
    event.preventDefault();
    start();
  } },
    h("h3", {}, "A run"),
    h("div", { class: "pair" }, field("What is flagged", preset), field("Steps, at most", steps)),
    rule.element, keepChat.label,
    h("details", {}, h("summary", {}, "All other settings"),
      h("div", {}, field("As in a file for aweigh align --config", more))),
    plan, h("div", { class: "row" }, begin));

  const runs = h("div", { class: "stack" });
  const detail = h("div", { class: "stack" });
  const element = h("div", { class: "stack" }, h("h2", {}, "Align"),
    h("div", { class: "card stack" }, h("h3", {}, "Flags"), many, table, drop),
    form, runs, detail);

  let chosen = null;
  let listed = "";
  let timer;

  function settings() {
    return { preset: preset.value || null, max_steps: steps.value ? Number(steps.value) : null,
      more: more.value, keep_chat: keepChat.input.checked };
  }

  async function take(file) {
    told.replaceChildren(h("p", {}, `Reading ${file.name}`));
    try {
      const done = await app.engine.importFlags(file);
      const notes = [done.repeated && `${done.repeated} were flagged already`,
        done.others && `${done.others} rows have no flagged answer`].filter((note) => note);
      told.replaceChildren(h("p", {}, `${file.name}: ${of(done.added, "new flag")}`,
        notes.length ? ` (${notes.join(", ")})` : ""),
        ...done.remarks.map((remark) => h("p", { class: "soft" }, remark)));
    } catch (error) {
      told.replaceChildren(h("p", { class: "error" }, error.message));
    }
    app.refresh();
  }

  function drawFlags() {
    const all = flags.all.toReversed();
    many.replaceChildren(all.length
      ? `${of(all.length, "flagged answer")}. Ten or more let the run hold some out, to see whether it `
        + "helps on prompts that it has not trained on; a hundred or more change a habit: many prompts and a "
        + "rule find them."
      : "No answer is flagged yet. ", ...(all.length ? [] : [h("a", { href: "#chat" }, "Chat and flag some"),
        ", or import a file."]));
    const last = (prompt) => (typeof prompt === "string" ? prompt : prompt.at(-1)?.content ?? "");
    const text = (flag) => flags.text(flag);
    const shown = all.length > 200 ? "Show the last 200" : "Show them";
    redraw(table, all.length ? [h("details", {}, h("summary", {}, shown),
      h("div", { class: "scroll" }, h("table", {},
        h("thead", {}, h("tr", {}, ["prompt", "answer", "why", ""].map((name) =>
          h("th", { scope: "col" }, name || "remove")))),
        h("tbody", {}, all.slice(0, 200).map((flag) => h("tr", {},
          h("td", {}, last(flag.prompt)), h("td", {}, text(flag)), h("td", {}, flag.note),
          h("td", {}, h("button", { type: "button", class: "plain",
            "aria-label": `Take the flag on ${text(flag).slice(0, 40)} back`,
            onclick: () => remove(flag) }, "×"))))))))] : []);
    rule.draw();
    replan();
  }

  function remove(flag) {
    app.run(async () => {
      await app.engine.removeFlag(flag.id);
      app.say("The flag is taken back.", ["Undo", () => app.engine.addFlag(flag)]);
    });
  }

  function replan() {
    clearTimeout(timer);
    timer = setTimeout(showPlan, 300);
  }

  async function showPlan() {
    if (!flags.all.length) {
      plan.replaceChildren();
      return;
    }
    try {
      const found = await app.engine.plan(settings());
      const held = found.held_out ? `, ${found.held_out} held out` : ", none held out";
      plan.replaceChildren(
        h("p", {}, `${of(found.train, "flag")} to train on${held}; at most ${of(found.steps, "step")} and ${
          bytes(found.peak)} of GPU memory besides the chat. `, found.seconds === null
          ? "How long it takes shows as soon as it runs."
          : `About ${seconds(found.seconds)}, if its steps take as long as those of the last run.`),
        ...found.remarks.map((remark) => h("p", { class: "soft" }, remark)),
        found.savings.length ? h("details", {}, h("summary", {}, "If that is too much memory"),
          h("ul", {}, found.savings.map(({ flag, peak, exact }) =>
            h("li", {}, h("code", {}, flag), `: ${bytes(peak)}${exact ? ", the same result" : ""}`)))) : "",
        h("details", {}, h("summary", {}, "The settings in full"), h("pre", {}, found.settings)));
    } catch (error) {
      plan.replaceChildren(h("p", { class: "error" }, error.message));
    }
  }

  function start() {
    app.run(async () => {
      if (!await rule.kept()) return;
      const { id } = await app.engine.startRun(settings());
      chosen = id;
      listed = "";
      detail.scrollIntoView({ block: "start" });
    });
  }

  async function drawRuns() {
    const all = await app.engine.runs();
    const key = JSON.stringify([all, chosen]);
    if (key === listed) return false;
    listed = key;
    chosen ??= all[0]?.id ?? null;
    redraw(runs, all.length ? [h("h2", {}, "Runs"), h("div", { class: "row" }, all.map((run) =>
      h("button", { type: "button", "aria-current": run.id === chosen ? "true" : null,
        class: run.id === chosen ? "main" : "",
        onclick: () => { chosen = run.id; listed = ""; tick(true); } },
      `Run ${run.id}: ${stageWords(run.stage)}`)))] : []);
    return true;
  }

  let shown = "";
  /// Charts are drawn for each answer of the server: it is asked only while something changes.
  async function tick(going) {
    const changed = await drawRuns();
    if (!changed && !going && shown) return;
    if (chosen === null) return detail.replaceChildren();
    const run = await app.engine.run(chosen).catch(() => null);
    if (run && run.id !== chosen) return;
    if (!run) {
      [chosen, shown] = [null, ""];
      return detail.replaceChildren();
    }
    const key = JSON.stringify(run);
    if (key === shown) return;
    shown = key;
    redraw(detail, runParts(app, run, () => keepChat.input.checked));
  }

  return {
    element,
    update(state) {
      const going = state.run && GOING.includes(state.run.stage);
      begin.disabled = Boolean(going) || !state.flags?.count;
      begin.textContent = going ? "A run goes on" : "Align";
      flags.sync(state).then((changed) => changed && drawFlags(), () => {});
      tick(going).catch(() => {});
    },
  };
}

/// The parts of a run's page.
function runParts(app, run, keepChat) {
  const { id, stage, live, summary, told, resumable } = run;
  const button = (name, text, work, main) => h("button", { type: "button", id: `${name}-run`,
    class: main ? "main" : "", onclick: () => app.run(work) }, text);
  const remove = async () => {
    if (confirm(`Delete run ${id}, its result and what was made from it?`)) await app.engine.removeRun(id);
  };
  const buttons = [];
  if (["loading", "running", "finishing"].includes(stage)) {
    buttons.push(button("pause", "Pause", () => app.engine.pauseRun(id)));
    if (live?.phase === "training" && stage === "running") {
      buttons.push(button("finish", "Finish now, keep the best", () => app.engine.finishRun(id)));
    }
  } else if (stage === "paused" || stage === "failed") {
    const resume = () => app.engine.resumeRun(id, keepChat());
    if (resumable) buttons.push(button("resume", "Resume", resume, true));
    buttons.push(button("remove", "Delete this run", remove));
  } else if (stage === "finished") {
    buttons.push(h("a", { class: "button", href: "#compare" }, "Compare before and after"),
      h("a", { class: "button", href: "#take" }, "Take it away"),
      button("remove", "Delete this run", remove));
  }
  const parts = [h("section", { class: "card stack" }, h("h3", {}, `Run ${id}: ${stageWords(stage)}`),
    h("p", { class: "soft" }, `${of(run.train, "flag")} to train on, ${run.held_out} held out`),
    ...progressParts(stage, live), ...verdict(summary, told), h("div", { class: "row" }, buttons))];
  if (live?.sampled.length && stage !== "finished") {
    const last = live.sampled.at(-1);
    parts.push(h("section", { class: "card" }, h("h3", {}, "Anchors: the model's own answers to keep"),
      h("p", { class: "asked" }, last.prompt),
      h("div", { class: "answers" }, last.anchors.map((anchor) => h("div", { class: "text" }, anchor)))));
  }
  if (told.courses.length) {
    parts.push(h("section", { class: "card" }, h("h3", {}, "Answers through the run"),
      told.courses.slice(0, 6).map((course) => [h("p", { class: "asked" }, course.prompt),
        h("div", { class: "answers" }, course.answers.map(([step, answer]) =>
          h("div", { class: "text" }, h("b", {}, step), answer || "(empty)")))])));
  }
  // The two rewards and the margins first: they say whether it works.
  const wanted = ["Rewards", "Margins", "Loss"];
  const rank = ({ title }) => (wanted.includes(title) ? wanted.indexOf(title) : wanted.length);
  const charts = run.charts.toSorted((a, b) => rank(a) - rank(b));
  const first = charts.filter((one) => rank(one) < 2);
  if (first.length) parts.push(h("div", { class: "cards" }, first.map(chart)));
  if (charts.length > first.length) {
    parts.push(h("details", {}, h("summary", {}, "More charts"),
      h("div", { class: "cards" }, charts.filter((one) => rank(one) >= 2).map(chart))));
  }
  if (told.row.held_out.length) parts.push(heldOut(told.row.held_out));
  if (run.settings) {
    parts.push(h("details", { class: "card" }, h("summary", {}, "Settings, and the folder"),
      h("div", {}, h("p", { class: "soft" }, where(app.place, run.folder)), h("pre", {}, run.settings))));
  }
  return parts;
}

function progressParts(stage, live) {
  if (!live) return [];
  const parts = [];
  if (GOING.includes(stage)) {
    const names = { anchors: "Sampling anchors", references: "Reference log-probs", training: "Training" };
    const bar = h("progress", live.total ? { value: live.done, max: live.total } : {});
    bar.setAttribute("aria-label", "Progress of this phase");
    parts.push(h("p", {}, live.phase ? `${names[live.phase]}: ${live.done} of ${live.total}` : "Loading",
      live.left ? `; about ${seconds(live.left)} left` : ""), bar);
  }
  const metric = (name, text) => (name in live.metrics
    ? [h("dt", {}, text), h("dd", {}, live.metrics[name].toFixed(3).replace(/^-0\.000$/, "0.000"))] : []);
  parts.push(h("dl", {}, metric("rewards/negative", "reward of flagged answers (should fall)"),
    metric("rewards/anchor", "reward of anchors (should not fall)"),
    metric("eval_rewards/margins", "margin on held-out flags"),
    metric("eval_completions/unwanted", "unwanted among held-out answers")));
  parts.push(...[...live.messages].slice(-3).map((text) => h("p", { class: "soft" }, text)));
  if (live.error) parts.push(h("p", { class: "error" }, live.error));
  return parts;
}

function verdict(summary, told) {
  if (!summary?.reason_text) return [];
  const kept = summary.kept_step === 0 && summary.steps > 0
    ? "No step was better than the model as it was: nothing is changed." : `Kept: the state of step ${
      summary.kept_step}.`;
  return [h("p", {}, h("strong", {}, `Ended after step ${summary.steps}: ${summary.reason_text}. `), kept),
    h("p", { class: "soft" }, told.row.time)];
}

function heldOut(rows) {
  return h("details", { class: "card" }, h("summary", {}, "Held-out figures before and after"),
    h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["figure", "before", "after", "change"].map((name) =>
        h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, h("td", {}, row.name),
        h("td", { class: "number" }, row.before), h("td", { class: "number" }, row.after),
        h("td", { class: `number ${row.verdict}` }, row.difference,
          row.verdict ? h("small", {}, row.verdict) : null)))))));
}
