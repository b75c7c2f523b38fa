// Elements of the document: found by id, made, and checked. Texts reach them through textContent only.

export const $ = (id) => document.getElementById(id);

const isAttribute = (name) => /^(aria-|data-)/.test(name) || name === "role" || name === "scope";

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (isAttribute(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// Checks the one of a group of radio buttons that has the value.
export function checkRadio(group, value) {
  for (const input of $(group).querySelectorAll("input")) input.checked = input.value === value;
}
