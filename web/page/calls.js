// The worker that runs Aweigh, as an object with functions.

export class Worker {
  /// Bytes of WebAssembly's memory, as of the last answer.
  memory = 0;
  #worker = null;
  #waiting = new Map();
  #next = 0;
  #failed = null;

  /// The worker. It is started for the first call, and for the first one after it has failed, unless what it
  /// had opened is lost with it.
  #running() {
    if (this.#failed) throw this.#failed;
    if (this.#worker) return this.#worker;
    const worker = new globalThis.Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker = worker;
    worker.onmessage = ({ data: { id, told, result, error } }) => {
      const call = this.#waiting.get(id);
      if (told !== undefined) return call?.told(told);
      this.#waiting.delete(id);
      if (error === undefined) call?.resolve(result);
      else call?.reject(new Error(error));
    };
    worker.onerror = (event) => {
      const lost = new Error(`the worker has failed: ${event.message ?? "it could not be loaded"}`);
      for (const call of this.#waiting.values()) call.reject(lost);
      this.#waiting.clear();
      worker.terminate();
      this.#worker = null;
      const again = "Reload the page: what was saved is still there.";
      if (this.opened) this.#failed = new Error(`${lost.message}. ${again}`);
    };
    return worker;
  }

  /// The GPU's name. Fails with a sentence on what would help if there is none.
  gpu() { return this.#call("gpu", []); }

  /// Runs all checks; `told` gets {row, all} after each. Returns {verdict, report}.
  selftest(quick, told) { return this.#call("selftest", [quick], told); }

  /// Opens the app's files. Returns whether the browser keeps them.
  async open() {
    const kept = await this.#call("open", []);
    this.opened = true;
    return kept;
  }

  /// Adds files from outside: the model `folder`, or one file if that is empty. `told` gets {done, all}, the
  /// bytes so far. Returns the model's name, which may have a number.
  add(folder, files, told) { return this.#call("add", [folder, files], told); }

  /// Adds the file at an address of this site. As `add`.
  fetch(url, told) { return this.#call("fetch", [url], told); }

  /// Removes a model that was added.
  remove(name) { return this.#call("remove", [name]); }

  /// Asks as fetch() does. `project` is the one that the page shows.
  ask(path, { method = "GET", body, signal, headers = {} }) {
    const request = { method, path, body, project: headers["aweigh-project"] ?? "" };
    const id = this.#next;
    return new Promise((resolve, reject) => {
      let to;
      const stop = () => {
        this.#worker?.postMessage({ id, stop: true });
        const aborted = new DOMException("the request was given up", "AbortError");
        reject(aborted);
        to?.error(aborted);
        to = null;
      };
      if (signal?.aborted) return reject(signal.reason);
      signal?.addEventListener("abort", stop, { once: true });
      const told = ({ head, piece, memory }) => {
        if (piece) return to?.enqueue(piece);
        this.memory = memory;
        const stream = new ReadableStream({ start: (controller) => { to = controller; }, cancel: stop });
        resolve(new Response(stream, head));
      };
      this.#call("ask", [request], told).then(() => to?.close(), (error) => {
        reject(error);
        to?.error(error);
      }).finally(() => signal?.removeEventListener("abort", stop));
    });
  }

  #call(name, args, told = () => {}) {
    const id = this.#next;
    this.#next += 1;
    return new Promise((resolve, reject) => {
      const worker = this.#running();
      this.#waiting.set(id, { told, resolve, reject });
      worker.postMessage({ id, name, args });
    });
  }
}
