// The page's address: its fragment says what is shown, and the button copies it as a link.

import { $ } from "./elements.js";

// The pairs of the fragment.
export const askedFor = () => [...new URLSearchParams(location.hash.slice(1))];

export function showInAddress(pairs) {
  try {
    history.replaceState(null, "", `#${new URLSearchParams(pairs)}`);
  } catch {
    // a page inside another one may have no address of its own
  }
}

export async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    $("copy-link").textContent = "Copied";
  } catch {
    $("copy-link").textContent = "See address bar";
  }
  setTimeout(() => { $("copy-link").textContent = "Copy link"; }, 1500);
}
