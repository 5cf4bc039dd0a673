// The rule for unwanted answers, which belongs to the model's flags: written by the user, or made of marked
// words.

import { field, h } from "./dom.js";

/// A field for the rule, with `text` as its label. `draw()` shows the rule as it is; `kept()` ends when what
/// was written is kept, and tells whether it was. What was refused is tried again, so that its error shows.
export function ruleField(app, flags, text) {
  let written = null;
  let keeping = Promise.resolve(true);
  const input = h("input", { type: "text", spellcheck: false, placeholder: "match:as an ai|i cannot",
    onchange: () => keep() });

  function keep() {
    const own = input.value;
    written = own;
    keeping = keeping.then(() => app.run(() => app.engine.setRule(own))).then((kept) => {
      if (kept && written === own) written = null;
      return kept;
    });
    return keeping;
  }

  return {
    element: field(text, input),
    draw() {
      if (written === null && document.activeElement !== input) input.value = flags.rule ?? "";
    },
    async kept() {
      await keeping;
      return written === null || keep();
    },
  };
}
