// What the page asks of what runs the model, wherever that is: the routes of app/src/app/routes.rs.

/// An error whose message is for the user.
export class EngineError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class Engine {
  /// `place` is where the model runs (page.js says what it has). `project` is the one that the page shows:
  /// changes to another one are refused.
  constructor(place, project = null) {
    this.place = place;
    this.project = project;
  }

  /// What goes on: the model, the run, the work, the number of flags.
  async state() {
    // Whatever is open now.
    const response = await this.place.ask("/app/state", {}).catch((error) => {
      throw new EngineError(this.place.silent(error), 0);
    });
    if (response.ok) return response.json();
    throw new EngineError(`status ${response.status}`, response.status);
  }

  /// Models to open.
  models() { return this.#json("GET", "/app/models"); }
  /// What the model takes, before it is loaded.
  describe(name) { return this.#json("POST", "/app/models/describe", { name }); }
  /// Opens the model and what belongs to it.
  openModel(name) {
    this.project = null;
    return this.#json("POST", "/app/model", { name });
  }
  /// Takes the model off the GPU.
  closeModel() { return this.#json("DELETE", "/app/model"); }
  /// Prompts to begin with.
  prompts() { return this.#json("GET", "/app/prompts"); }

  /// Samples an answer; `onText` gets its parts. Returns {text, finish}. `signal` ends it.
  async chat(model, messages, settings, onText, signal) {
    const body = { model, messages, stream: true, ...settings };
    const response = await this.#fetch("POST", "/v1/chat/completions", JSON.stringify(body), signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let [text, finish, rest] = ["", null, ""];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.filter((line) => line.startsWith("data: {"))) {
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new EngineError(event.error.message, 500);
        const [choice] = event.choices;
        if (!choice) continue;
        finish = choice.finish_reason ?? finish;
        if (choice.delta.content) {
          text += choice.delta.content;
          onText(choice.delta.content);
        }
      }
    }
    if (!finish) throw new EngineError("the answer was cut off: the model has stopped answering", 500);
    return { text, finish };
  }

  /// The flags, their revision, and the rule for unwanted answers.
  flags() { return this.#json("GET", "/app/flags"); }
  /// Flags an answer; returns its id.
  addFlag(flag) { return this.#json("POST", "/app/flags", flag); }
  changeFlag(id, note, parts) { return this.#json("PUT", `/app/flags/${id}`, { note, parts }); }
  /// Removes a flag and returns it.
  removeFlag(id) { return this.#json("DELETE", `/app/flags/${id}`); }
  /// Adds the flagged answers of a file.
  async importFlags(file) {
    const path = `/app/flags/import?name=${encodeURIComponent(file.name)}`;
    return (await this.#fetch("POST", path, await file.arrayBuffer())).json();
  }

  /// Keeps the user's own rule; an empty one is made of the marked words.
  setRule(rule) { return this.#json("PUT", "/app/rule", { rule }); }
  /// For each answer, whether the rule holds.
  matches(texts) { return this.#json("POST", "/app/rule/matches", { texts }); }

  chats() { return this.#json("GET", "/app/chats"); }
  saveChat(chat) { return this.#json("PUT", `/app/chats/${chat.id}`, chat); }
  removeChat(id) { return this.#json("DELETE", `/app/chats/${id}`); }

  /// What a run would take.
  plan(settings) { return this.#json("POST", "/app/plan", settings); }
  runs() { return this.#json("GET", "/app/runs"); }
  run(id) { return this.#json("GET", `/app/runs/${id}`); }
  /// Starts a run; returns its id.
  startRun(settings) { return this.#json("POST", "/app/runs", settings); }
  pauseRun(id) { return this.#json("POST", `/app/runs/${id}/pause`); }
  finishRun(id) { return this.#json("POST", `/app/runs/${id}/finish`); }
  resumeRun(id, keepChat) { return this.#json("POST", `/app/runs/${id}/resume`, { keep_chat: keepChat }); }
  removeRun(id) { return this.#json("DELETE", `/app/runs/${id}`); }

  /// Compares the model with a run.
  compare(id, settings) {
    return this.#json("POST", `/app/runs/${id}/work`, { what: "compare", ...settings });
  }
  /// Makes a file from a run.
  exportRun(id, kind) { return this.#json("POST", `/app/runs/${id}/work`, { what: "export", kind }); }
  cancelWork() { return this.#json("DELETE", "/app/work"); }
  /// Keeps a choice; returns the tally.
  vote(vote) { return this.#json("POST", "/app/votes", vote); }

  /// Where a run's report is.
  reportUrl(id) { return `/app/runs/${id}/report`; }
  /// The properties of a link to a run's file `item`, or to the file `name` in the folder `item`.
  fileLink(id, item, name) {
    const parts = [id, "files", item, name].filter((part) => part).map(encodeURIComponent);
    return this.place.link(`/app/runs/${parts.join("/")}`, name ?? item);
  }

  async #json(method, path, body) {
    const response = await this.#fetch(method, path, body === undefined ? undefined : JSON.stringify(body));
    return response.json();
  }

  async #fetch(method, path, body, signal) {
    let response;
    try {
      const headers = this.project ? { "aweigh-project": this.project } : {};
      response = await this.place.ask(path, { method, body, signal, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new EngineError(this.place.silent(error), 0);
    }
    if (response.ok) return response;
    const told = await response.json().catch(() => null);
    throw new EngineError(told?.error?.message ?? `status ${response.status}`, response.status);
  }
}
