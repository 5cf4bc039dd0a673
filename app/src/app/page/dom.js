// Elements, and texts for people.

/// An element with properties and children. `class` and names with a dash are attributes, `on...` listeners.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "for" || name === "role" || name.includes("-")) {
      if (value !== false) element.setAttribute(name, value);
    } else element[name] = value;
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/// Shows `parts` in `place` instead of what is there. What is open stays open, and what has the focus keeps
/// it.
export function redraw(place, parts) {
  const name = (element) => element.getAttribute("aria-label") ?? element.textContent;
  const open = [...place.querySelectorAll("details[open] > summary")].map(name);
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  place.replaceChildren(...parts.filter((part) => part));
  for (const summary of place.querySelectorAll("details > summary")) {
    if (open.includes(name(summary))) summary.parentElement.open = true;
  }
  if (focused && !place.contains(focused)) {
    const same = [...place.querySelectorAll(focused.tagName)].find((other) => name(other) === name(focused));
    same?.focus();
  }
}

/// A label over its field.
export function field(text, input) {
  return h("label", {}, h("span", {}, text), input);
}

/// A box to tick, and its label.
export function check(text, properties) {
  const input = h("input", { type: "checkbox", ...properties });
  const label = h("label", { class: "check" }, input, h("span", {}, text));
  return { input, label };
}

/// A chart that the server has drawn: its SVG, title, note and legend.
export function chart({ title, note, legend, svg }) {
  const drawn = new DOMParser().parseFromString(svg, "text/html").body.firstElementChild;
  const names = legend.filter((line) => line.name);
  return h(
    "section", { class: "card chart" },
    h("h3", {}, title),
    note ? h("p", { class: "soft" }, note) : null,
    document.importNode(drawn, true),
    names.length ? h("ul", { class: "legend" }, names.map((line) =>
      h("li", {}, h("span", { class: `key ${line.class}` }), line.name))) : null,
  );
}

/// Bytes in a few characters.
export function bytes(count) {
  for (const [power, unit] of [[30, "GiB"], [20, "MiB"], [10, "KiB"]]) {
    if (count >= 2 ** power) return `${(count / 2 ** power).toFixed(1)} ${unit}`;
  }
  return `${count} bytes`;
}

/// A number with separators.
export function count(number) {
  return number.toLocaleString("en");
}

/// A number of things, as in "1 flag".
export function of(number, thing) {
  return `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
}

/// A duration.
export function seconds(time) {
  const whole = Math.round(time);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole / 60) % 60)).padStart(2, "0")} min`;
}

/// Where the files in a folder are, in words.
export function where(place, folder) {
  return place.local ? `in ${folder}` : "in this browser, which keeps them for this page alone";
}

/// `text` with its `parts` marked.
export function marked(text, parts) {
  const found = parts.filter((part) => part && text.includes(part)).sort((a, b) => b.length - a.length);
  if (!found.length) return [text];
  const at = text.indexOf(found[0]);
  const [before, after] = [text.slice(0, at), text.slice(at + found[0].length)];
  return [...marked(before, found), h("mark", {}, found[0]), ...marked(after, found)];
}
