// Opening a page: what keeps it from being shown is said on it.

import { $ } from "./elements.js";

export async function openPage(start) {
  try {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser is too old: it has no DecompressionStream");
    }
    await start();
  } catch (error) {
    $("problem").hidden = false;
    $("problem").textContent = `The page can't be shown: ${error.message}`;
    throw error;
  }
}
