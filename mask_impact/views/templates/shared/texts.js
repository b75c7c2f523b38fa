// Texts of a prompt or a tokenizer, made safe to look at. They reach plotly through `plotlyText` only.

// Control, format and unassigned characters, and separators other than the space: what can't be seen, or moves others.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\p{Zl}\p{Zp}]|(?! )\p{Zs}|\\/gu;
const WRITTEN = { "\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\" };

// The text with everything written out that can't be seen (`\n`, `\x1b`, `\u202e`).
export function visible(text) {
  return text.replace(UNSEEN, (char) => {
    if (WRITTEN[char]) return WRITTEN[char];
    const code = char.codePointAt(0);
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });
}

export function quoted(text, width = Infinity) {
  const inner = [...visible(text).replaceAll('"', '\\"')];
  return `"${inner.length > width ? `${inner.slice(0, width - 1).join("")}…` : inner.join("")}"`;
}

// plotly takes some HTML in its texts, links among it.
export function plotlyText(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
