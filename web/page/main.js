// The page in a tab: a worker runs Aweigh on the tab's own GPU, and answers the page.

import { Worker } from "./calls.js";
import { bytes, h } from "./dom.js";
import { zone } from "./models.js";
import { start } from "./page.js";

const worker = new Worker();
const going = ["loading", "running", "pausing", "finishing"];
const memory = h("span");
const footer = document.querySelector("footer");
footer.append(h("p", {}, "All of it runs in this tab, on your own GPU. Nothing is sent anywhere. ",
  h("a", { href: "./check.html" }, "Does your GPU compute correctly?"), " ", memory));
footer.hidden = false;
let state = null;

/// Saves what is at `path` as a file.
async function save(path, name) {
  const response = await worker.ask(path, {});
  if (!response.ok) throw new Error((await response.json()).error.message);
  const file = URL.createObjectURL(await response.blob());
  h("a", { href: file, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(file), 60_000);
}

/// Where Aweigh runs: page.js says what a place has.
const place = {
  async ask(path, request) {
    const response = await worker.ask(path, request);
    if (path === "/app/state") {
      state = await response.clone().json();
      const words = `This tab uses ${bytes(worker.memory)} of memory besides the GPU's.`;
      if (memory.textContent !== words) memory.textContent = words;
    }
    return response;
  },
  silent: (error) => error.message,
  link: (path, name) => ({ href: "#take", onclick: (event) => {
    event.preventDefault();
    save(path, name).catch((error) => { document.getElementById("toast").textContent = error.message; });
  } }),
  local: false,
  models: zone(worker),
  remove: (name) => worker.remove(name),
};

// A run that is interrupted goes on from its last checkpoint, but what came after it is done again.
addEventListener("beforeunload", (event) => {
  if (state?.run && going.includes(state.run.stage)) event.preventDefault();
});

try {
  const kept = await worker.open();
  start(place);
  if (!kept) {
    const lost = document.getElementById("lost");
    lost.after(h("div", { class: "notice", role: "status" }, "This browser keeps nothing for this page (a ",
      "private window?): what you do here is gone when the tab is closed or reloaded."));
  }
} catch (error) {
  document.getElementById("main").replaceChildren(h("div", { class: "card" },
    h("h2", {}, "Aweigh cannot run in this tab"), h("p", { class: "error" }, error.message)));
}
// From then on the page works without a network.
navigator.serviceWorker?.register("./offline.js").catch(() => {});
