// The rule for unwanted answers, which belongs to the model's flags: written by the user, or made of marked
// words.

import { field, h } from "./dom.js";

/// A field for the rule, with `text` as its label. `draw()` shows the rule as it is; `kept()` ends when what
/// was written is kept, and tells whether it was.
export function ruleField(app, flags, text) {
  let keeping = Promise.resolve(true);
  const input = h("input", { type: "text", spellcheck: false, placeholder: "match:as an ai|i cannot",
    onchange: () => {
      const written = input.value;
      keeping = app.run(() => app.engine.setRule(written));
    } });
  return {
    element: field(text, input),
    draw() {
      if (document.activeElement !== input) input.value = flags.rule ?? "";
    },
    kept: () => keeping,
  };
}
