// What the file holds for its script: the JSON that Python wrote into the page.

export const page = JSON.parse(document.getElementById("page-data").textContent);
