// The page: its steps, what goes on, and messages.
//
// `start` gets the place where Aweigh runs: a program behind HTTP, or a worker of a tab. A place has
//   ask(path, request)   as fetch
//   silent(error)        what to say if there is no answer
//   link(path, name)     the properties of a link that saves what is at the path as a file of that name
//   local                whether its paths are those of the user's disk
//   models(app, added)   in a tab: an element in which the user adds a model; `added` gets its name
//   remove(name)         in a tab: removes such a model

import { h, of, seconds } from "./dom.js";
import { Engine } from "./engine.js";
import { alignView } from "./align.js";
import { chatView } from "./chat.js";
import { compareView } from "./compare.js";
import { modelView } from "./model.js";
import { takeView } from "./take.js";

const STEPS = [
  ["model", "Model", modelView], ["chat", "Chat", chatView], ["align", "Align", alignView],
  ["compare", "Compare", compareView], ["take", "Take away", takeView],
];

export function start(place) {
  const steps = document.getElementById("steps");
  const status = document.getElementById("status");
  const lost = document.getElementById("lost");
  const toast = document.getElementById("toast");
  const main = document.getElementById("main");

  /// What the views share.
  const app = {
    place,
    engine: new Engine(place),
    state: null,
    /// Shows a message for a while, with a button if `action` is given: [text, function].
    say(text, action) {
      clearTimeout(app.timer);
      const button = action ? h("button", { type: "button", onclick: () => {
        toast.replaceChildren();
        app.run(action[1]);
      } }, action[0]) : null;
      toast.replaceChildren(h("span", {}, text), ...(button ? [button] : []));
      app.timer = setTimeout(() => toast.replaceChildren(), Math.max(action ? 9000 : 5000, 90 * text.length));
    },
    /// Runs `work`; an error becomes a message. Returns whether it worked.
    async run(work) {
      try {
        await work();
        return true;
      } catch (error) {
        if (error.name !== "AbortError") app.say(error.message);
        return false;
      } finally {
        // The answer that is on its way may be from before.
        await asking;
        await refresh();
      }
    },
    go(step) { location.hash = step; },
    refresh: () => refresh(),
  };

  let view = null;
  let shown = null;

  for (const [name, title] of STEPS) {
    steps.append(h("li", {}, h("a", { href: `#${name}`, id: `to-${name}` }, title)));
  }

  /// The words beside the steps.
  function summary({ model, project, run, flags }) {
    const words = [];
    if (project) words.push(project);
    if (model.status === "opening") words.push(model.file ? `downloading ${model.file}` : "loading");
    if (model.status === "failed") words.push("not loaded");
    if (model.status === "closed" && project) words.push("not on the GPU");
    if (flags) words.push(of(flags.count, "flag"));
    if (run && ["running", "loading", "pausing", "finishing"].includes(run.stage)) {
      words.push(`run ${run.id}: ${run.left ? `${seconds(run.left)} left` : run.stage}`);
    }
    return words.join(" · ");
  }

  function show() {
    const wanted = location.hash.slice(1);
    const first = app.state?.project ? "chat" : "model";
    // The link to the content is no step: what is shown stays.
    const chosen = wanted === "main" ? app.step : wanted;
    const step = STEPS.find(([name]) => name === chosen) ?? STEPS.find(([name]) => name === first);
    const [name, title, make] = step;
    app.step = name;
    const project = app.state?.project_id ?? null;
    const key = `${name} ${project}`;
    for (const [other] of STEPS) {
      const link = document.getElementById(`to-${other}`);
      if (other === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${title} – Aweigh`;
    if (key === shown) return;
    view?.leave?.();
    if (shown && !shown.endsWith(` ${project}`)) toast.replaceChildren();
    shown = key;
    const needsProject = name !== "model" && !app.state?.project;
    // What a view asks is about the project that it shows, also when another one is open by then.
    const engine = { value: new Engine(place, project) };
    view = needsProject ? nothing() : make(Object.create(app, { engine }));
    main.replaceChildren(view.element);
    if (app.state) view.update?.(app.state);
  }

  /// In place of a step that needs a model.
  function nothing() {
    return { element: h("div", { class: "card" }, h("h2", {}, "No model is open"),
      h("p", {}, "Choose one first."), h("a", { href: "#model" }, "Choose a model")) };
  }

  let asking = null;
  let again;

  /// Asks what goes on, now and once a second.
  function refresh() {
    asking ??= ask().finally(() => { asking = null; });
    return asking;
  }

  async function ask() {
    clearTimeout(again);
    try {
      const state = await app.engine.state();
      const began = !app.state;
      app.state = state;
      lost.hidden = true;
      const words = summary(state);
      if (status.textContent !== words) status.textContent = words;
      show();
      if (!began) view?.update?.(state);
    } catch (error) {
      lost.hidden = false;
      lost.textContent = `${error.message} What you see may be old. Your flags and conversations are kept; `
        + "a run that was interrupted can be resumed.";
    } finally {
      again = setTimeout(refresh, document.hidden ? 5000 : 1000);
    }
  }

  addEventListener("hashchange", show);
  addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  refresh();
}
