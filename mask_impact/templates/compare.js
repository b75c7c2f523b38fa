// The page of a comparison. One state, changed only by `set`; every panel is drawn from it. What the pointer is on is apart from it:
// it changes marks only (`point`), of the texts, the pictures and the charts.
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const $ = (id) => document.getElementById(id);
  const { sides, pairs } = page;
  const SCALES = ["linear", "sqrt", "log"];
  const SCALE_NAMES = { linear: "linear scale", sqrt: "square-root scale", log: "logarithmic scale" };
  const N_DIFFERING = 15;
  const PICTURE_HEIGHT = 260; // pixels, at most
  const START = { depth: 50, range: "all", number: "share", scale: "sqrt", token: "", pair: 0, theme: "auto" };
  let state = { ...START };
  let pointed = null; // { side, place, layer } under the pointer; place or layer may be -1

  // ---- what the file holds -----------------------------------------------------------------------------------------------

  sides.forEach((side, number) => {
    Object.assign(side, { number, n: side.positions.length, cellAt: new Map(), leftOut: new Set(side.left_out), specialAt: new Set(side.special) });
    for (const [place, image, row, column] of side.cells) side.cellAt.set(place, { image, row, column });
  });
  // Tokens that belong together have one key: the place in the first result, or a result's letter and place where it has no partner.
  const keyAt = sides.map((side) => side.positions.map((_, place) => (side.number ? `${side.letter}${place}` : String(place))));
  for (const { second, aligned } of pairs) for (const [one, other] of aligned) keyAt[second][other] = String(one);
  const placeOf = sides.map((_, number) => new Map(keyAt[number].map((key, place) => [key, place])));
  const partners = (key) => sides.map((_, number) => placeOf[number].get(key) ?? -1);
  const isAlone = (number, place) => partners(keyAt[number][place]).filter((one) => one >= 0).length < 2;

  async function readDistances() {
    await Promise.all(sides.map(async (side) => {
      for (const what of ["distance", "value"]) side[what] = await distancesOf($(`b-${side.number}-${what}`).textContent);
      side.share = sharesOf(side);
    }));
  }

  // Of each layer's sum of what is compared, NaN where a token is left out or has no value.
  function sharesOf(side) {
    const shares = new Float64Array(side.n * side.n_layers).fill(NaN);
    for (let layer = 0; layer < side.n_layers; layer++) {
      let total = 0;
      for (let place = 0; place < side.n; place++) if (!side.leftOut.has(place)) total += Math.max(side.value[layer * side.n + place], 0) || 0;
      if (!(total > 0)) continue;
      for (let place = 0; place < side.n; place++) if (!side.leftOut.has(place)) shares[layer * side.n + place] = Math.max(side.value[layer * side.n + place], 0) / total;
    }
    return shares;
  }

  const numberAt = (side, place, layer) => (side.leftOut.has(place) ? NaN : side[state.number][layer * side.n + place]);
  const layerAt = (side, depth = state.depth) => Math.min(Math.floor((depth / 100) * side.n_layers), side.n_layers - 1);
  const depthOf = (side, layer) => (100 * (layer + 0.5)) / side.n_layers;

  // The mean over the layers shown of what has a value.
  function score(side, place) {
    if (state.range === "depth") return numberAt(side, place, layerAt(side));
    let [sum, n] = [0, 0];
    for (let layer = 0; layer < side.n_layers; layer++) {
      const value = numberAt(side, place, layer);
      if (!Number.isNaN(value)) { sum += value; n++; }
    }
    return n ? sum / n : NaN;
  }

  function tokenName(side, place, width = Infinity) {
    const cell = side.cellAt.get(place);
    return cell ? `image ${cell.image} [${cell.row}, ${cell.column}]` : quoted(side.texts[place], width);
  }
  const numberText = (value) => (!Number.isFinite(value) ? "no value" : state.number === "share" ? percentText(value) : shortText(value));
  const colourOf = (side) => LINES[theme()][side.number];

  // ---- state -------------------------------------------------------------------------------------------------------------

  const oneOf = (value, accepted, otherwise) => (accepted.includes(value) ? value : otherwise);
  const allKeys = new Set(keyAt.flat());

  // Whatever a link says, the state is one that the file has.
  function normalise(wanted) {
    const next = { ...START, ...wanted };
    next.depth = Math.min(Math.max(Math.round(Number(next.depth)) || 0, 0), 100);
    next.pair = Math.min(Math.max(Math.trunc(Number(next.pair)) || 0, 0), pairs.length - 1);
    next.range = oneOf(next.range, ["depth", "all"], START.range);
    next.number = page.scale === "share" ? "share" : oneOf(next.number, ["share", "value"], START.number);
    next.scale = oneOf(next.scale, SCALES, START.scale);
    next.theme = oneOf(next.theme, ["auto", "light", "dark"], START.theme);
    next.token = allKeys.has(next.token) ? next.token : "";
    return next;
  }

  const fragment = () => new URLSearchParams(Object.entries(state).filter(([name, value]) => value !== START[name])).toString();
  const fromFragment = () => normalise(Object.fromEntries([...new URLSearchParams(location.hash.slice(1))].filter(([name]) => name in START)));

  // The token whose profile is shown: the chosen one, else the one that differs most, else the first.
  function shownKey() {
    const [first] = pairs[state.pair].differing;
    return state.token || (first ? String(first[0]) : keyAt[0][0]);
  }

  let latest = 0;
  async function set(changes) {
    state = normalise({ ...state, ...changes });
    const ticket = ++latest;
    document.documentElement.dataset.drawn = "false"; // for whoever drives the page
    showTheme();
    drawPage();
    await plotlyReady;
    if (ticket !== latest) return;
    await drawCharts();
    if (ticket === latest) document.documentElement.dataset.drawn = "true";
  }

  // ---- tips --------------------------------------------------------------------------------------------------------------

  // Of a token in every result that has it: at the depth of a layer of one of them, or of the layers shown (layer -1).
  function tipOf({ side, place, layer }) {
    const depth = layer < 0 ? state.depth : depthOf(side, layer);
    return partners(keyAt[side.number][place]).flatMap((partner, number) => {
      const one = sides[number];
      if (partner < 0) return [`${one.letter}: not there`];
      const start = `${one.letter} · position ${one.positions[partner]} · ${tokenName(one, partner)}`;
      if (one.leftOut.has(partner)) return [`${start}\nleft out as an attention sink`];
      if (layer < 0 && state.range === "all") return [`${start}\n${numberText(score(one, partner))}, mean of all layers`];
      const own = one === side && layer >= 0 ? layer : layerAt(one, depth);
      const at = own * one.n + partner;
      const distance = Number.isFinite(one.distance[at]) ? float32Text(one.distance[at]) : "no value";
      const scaled = page.scale === "relative" ? `, ${shortText(one.value[at])} of the norm` : "";
      return [`${start}\nlayer ${own}: ${page.metric} ${distance}${scaled}, ${percentText(one.share[at])} of the layer`.replace("NaN %", "no share").replace(", NaN of the norm", "")];
    }).join("\n");
  }

  function showTip(text, x, y) {
    const tip = $("tip");
    tip.textContent = text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 12) : y + 18}px`;
  }

  // What the pointer is on, null where it is on nothing: marked in all results.
  function point(what, x = 0, y = 0) {
    const before = pointed;
    pointed = what;
    if (what && what.place >= 0) showTip(tipOf(what), x, y);
    else $("tip").hidden = true;
    if (before?.side === what?.side && before?.place === what?.place && before?.layer === what?.layer) return;
    mark();
  }

  // The keys and the depth that are marked.
  const markedKeys = () => [state.token, pointed && pointed.place >= 0 ? keyAt[pointed.side.number][pointed.place] : ""].filter(Boolean);
  const markedDepth = () => (pointed && pointed.layer >= 0 ? depthOf(pointed.side, pointed.layer) : state.range === "depth" ? state.depth : null);

  function mark() {
    const keys = markedKeys();
    for (const side of sides) {
      for (const made of $(`text-${side.number}`).querySelectorAll(".token")) {
        const own = made.dataset.place === undefined ? [] : [keyAt[side.number][made.dataset.place]];
        const within = made.dataset.image === undefined ? own : keys.filter((key) => side.cellAt.get(placeOf[side.number].get(key))?.image === Number(made.dataset.image));
        made.classList.toggle("linked", within.some((key) => keys.includes(key)));
      }
      drawPictures(side);
      const chart = $(`heat-${side.number}`);
      if (chart.layout) Plotly.relayout(chart, { shapes: shapesOf(side) });
    }
  }

  // ---- page: everything but charts ---------------------------------------------------------------------------------------

  function showTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = state.theme === "auto" ? (dark ? "dark" : "light") : state.theme;
    $("theme-name").textContent = { auto: "automatic", light: "light", dark: "dark" }[state.theme];
    for (const part of document.querySelectorAll("[data-side]")) part.style.setProperty("--side", colourOf(sides[part.dataset.side]));
  }

  function drawPage() {
    drawControls();
    sides.forEach(drawText);
    drawAgreement();
    drawEffect();
    drawDiffering();
    mark();
    try {
      history.replaceState(null, "", `#${fragment()}`);
    } catch {
      // a page inside another one may have no address of its own
    }
    $("live").textContent = `${layersText()}, ${state.number === "share" ? "share of layer" : page.unit}, ${SCALE_NAMES[state.scale]}`;
  }

  const layersText = () => (state.range === "all" ? "all layers" : `depth ${state.depth} %: ${sides.map((side) => `layer ${layerAt(side)} of ${side.letter}`).join(", ")}`);

  function drawControls() {
    $("depth").value = state.depth;
    $("depth").setAttribute("aria-valuetext", layersText());
    $("depth-value").textContent = `${state.depth} % · ${sides.map((side) => `${side.letter} ${layerAt(side)}`).join(" · ")}`;
    for (const name of ["range", "number", "scale"]) for (const input of $(name).querySelectorAll("input")) input.checked = input.value === state[name];
    $("token").value = state.token;
    $("pair").value = state.pair;
    $("heats-hint").textContent = `${page.unit[0].toUpperCase()}${page.unit.slice(1)}${state.number === "share" && page.scale !== "share" ? ", as share of the layer" : ""}; ${SCALE_NAMES[state.scale]}. The texts are shaded for ${layersText()}. Point at a token or choose it to see it in all results.`;
  }

  function makeSides() {
    $("sides").replaceChildren(...sides.map((side) => {
      const title = element("h3", {}, element("b", { textContent: side.letter }), element("span", { textContent: visible(side.name) }), element("small", { textContent: `${side.n_layers} layers · ${side.n} tokens` }));
      const text = element("div", { className: "running", id: `text-${side.number}`, role: "group", "aria-label": `Tokens of ${side.letter}` });
      const pictures = element("div", { className: "pictures", id: `pictures-${side.number}` }, ...side.images.map((image, number) => makePicture(side, image, number)));
      const heat = element("div", { className: "chart", id: `heat-${side.number}`, role: "img" });
      const png = element("button", { type: "button", textContent: "PNG", "aria-label": `Save the heat map of ${side.letter} as PNG` });
      png.addEventListener("click", () => downloadChart(fileName(`heat-${side.letter}`), heat));
      const csv = element("button", { type: "button", textContent: "CSV", "aria-label": `Save the numbers of ${side.letter} as CSV` });
      csv.addEventListener("click", () => downloadCsv(fileName(`heat-${side.letter}`), ...heatRows(side)));
      makeRoving(text);
      text.addEventListener("mousemove", (event) => {
        const token = event.target.closest("[data-place]");
        point(token ? { side, place: Number(token.dataset.place), layer: -1 } : null, event.clientX, event.clientY);
      });
      text.addEventListener("mouseleave", () => point(null));
      text.append(...makeTokens(side));
      const first = text.querySelector(".token");
      if (first) first.tabIndex = 0;
      return element("div", { className: "side", "data-side": side.number }, title, text, pictures, heat, element("div", { className: "exports" }, png, csv));
    }));
  }

  function makeTokens(side) {
    const parts = [];
    let image = -1;
    side.texts.forEach((text, place) => {
      const cell = side.cellAt.get(place);
      if (cell && cell.image === image) return;
      image = cell ? cell.image : -1;
      const made = element("span", { className: "token", role: "button", tabIndex: -1 });
      if (cell) {
        const [rows, columns] = side.images[image].grid;
        made.classList.add("image");
        made.dataset.image = image;
        made.textContent = `image ${image} · ${rows} × ${columns} patches`;
        made.setAttribute("role", "note");
      } else {
        made.dataset.place = place;
        made.textContent = visible(text) || "\u2205";
        made.classList.toggle("special", side.specialAt.has(place));
        made.classList.toggle("mark", visible(text) !== text);
        made.classList.toggle("alone", isAlone(side.number, place));
        made.addEventListener("click", () => choose(side, place));
      }
      parts.push(made);
      if (!cell && text.includes("\n")) parts.push("\n");
    });
    return parts;
  }

  function choose(side, place) {
    const key = keyAt[side.number][place];
    set({ token: state.token === key ? "" : key });
  }

  function scaleOf(side) {
    return makeScale(state.scale, ...extent(side.positions.map((_, place) => score(side, place))));
  }

  function drawText(side) {
    const scale = scaleOf(side);
    for (const made of $(`text-${side.number}`).querySelectorAll("[data-place]")) {
      const place = Number(made.dataset.place);
      const value = score(side, place);
      const level = Number.isNaN(value) ? null : scale.level(value);
      made.style.background = level === null ? "" : colourAt(level);
      made.style.color = level === null ? "" : inkOn(rgbAt(level));
      made.classList.toggle("none", side.leftOut.has(place));
      made.setAttribute("aria-pressed", keyAt[side.number][place] === state.token);
      made.setAttribute("aria-label", `position ${side.positions[place]} ${tokenName(side, place)}, ${side.leftOut.has(place) ? "left out as an attention sink" : numberText(value)}${isAlone(side.number, place) ? ", in no other result" : ""}`);
    }
  }

  // ---- pictures ----------------------------------------------------------------------------------------------------------

  function makePicture(side, image, number) {
    const canvas = element("canvas", { role: "img", "aria-label": `Patches of image ${number} of ${side.letter}` });
    const picture = element("div", { className: "picture" });
    const aspect = image.size[0] / image.size[1];
    Object.assign(picture.style, { aspectRatio: String(aspect), maxWidth: `${Math.round(PICTURE_HEIGHT * Math.max(aspect, 0.2))}px` });
    if (image.preview) picture.append(element("img", { alt: "", src: `data:image/jpeg;base64,${image.preview}` }));
    picture.append(canvas);
    const placeAt = (event) => {
      const box = canvas.getBoundingClientRect();
      const [rows, columns] = image.grid;
      const [row, column] = [Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * columns)];
      return side.cells.find((cell) => cell[1] === number && cell[2] === row && cell[3] === column)?.[0] ?? -1;
    };
    canvas.addEventListener("mousemove", (event) => point({ side, place: placeAt(event), layer: -1 }, event.clientX, event.clientY));
    canvas.addEventListener("mouseleave", () => point(null));
    canvas.addEventListener("click", (event) => { if (placeAt(event) >= 0) choose(side, placeAt(event)); });
    return element("figure", {}, picture, element("figcaption", { textContent: image.source ? visible(image.source) : `image ${number}` }));
  }

  function drawPictures(side) {
    if (!side.images.length) return;
    const scale = makeScale(state.scale, ...extent(side.cells.map(([place]) => score(side, place))));
    const keys = markedKeys();
    [...$(`pictures-${side.number}`).querySelectorAll("canvas")].forEach((canvas, number) => {
      const { preview, grid: [rows, columns] } = side.images[number];
      const box = canvas.getBoundingClientRect();
      const ratio = Math.max(devicePixelRatio || 1, 1);
      canvas.width = Math.max(Math.round(box.width * ratio), columns);
      canvas.height = Math.max(Math.round(box.height * ratio), rows);
      const [wide, high] = [canvas.width / columns, canvas.height / rows];
      const context = canvas.getContext("2d");
      const marked = [];
      for (const [place, image, row, column] of side.cells) {
        if (image !== number) continue;
        const value = score(side, place);
        const level = Number.isNaN(value) ? 0 : scale.level(value);
        context.globalAlpha = preview ? 0.7 * (0.2 + 0.8 * level) : 1; // over a picture, what matters little covers little of it
        context.fillStyle = Number.isNaN(value) ? "#808080" : colourAt(level);
        context.fillRect(column * wide, row * high, wide, high);
        if (keys.includes(keyAt[side.number][place])) marked.push([column * wide, row * high, wide, high]);
      }
      context.globalAlpha = 1;
      canvas.dataset.marked = marked.length;
      for (const [x, y, w, h] of marked) {
        const inset = Math.min(w, h) > 16 * ratio ? 2 : -3; // around a small cell, not over it
        for (const [colour, width] of [["#ffffff", 5], [cssColour("--accent"), 3]]) {
          context.strokeStyle = colour;
          context.lineWidth = width * ratio;
          context.strokeRect(x + inset, y + inset, w - 2 * inset, h - 2 * inset);
        }
      }
    });
  }

  // ---- tables ------------------------------------------------------------------------------------------------------------

  const pair = () => pairs[state.pair];
  const second = () => sides[pair().second];

  function drawResults() {
    $("unit").textContent = `What is compared, for produced token ${page.step}: ${page.unit}.`;
    $("results").tBodies[0].replaceChildren(...sides.map((side) => {
      const sign = element("td", {}, element("span", { className: "letter", "data-side": side.number, textContent: side.letter }));
      const out = side.left_out.map((place) => `${side.positions[place]} ${tokenName(side, place, 24)}${side.sinks.includes(side.positions[place]) ? " (attention sink)" : ""}`);
      const texts = [visible(side.name), visible(side.model), side.n_layers, side.n, side.produced ? quoted(side.produced) : "", out.join(", ") || "none"];
      return element("tr", {}, sign, ...texts.map((text, i) => element("td", { textContent: text, className: i === 2 || i === 3 ? "number" : "" })));
    }));
    $("notices").replaceChildren(...page.notes.map((note) => element("li", { textContent: visible(note) })));
  }

  const agreementRows = () => {
    const { overall, text, image, bands } = pair();
    const whole = [sides[0], second()].map((side) => `0-${side.n_layers - 1}`);
    const kinds = [["all", overall], ["all, text only", text], ["all, images only", image]].filter(([, one]) => one);
    return [...kinds.map(([name, one]) => [name, ...whole, one, null]), ...bands.map((one, band) => [page.bands[band], sides[0].layers[band], second().layers[band], one, band])];
  };

  function drawAgreement() {
    $("layers-first").textContent = `layers ${sides[0].letter}`;
    $("layers-second").textContent = `layers ${second().letter}`;
    const current = Math.min(Math.floor((state.depth / 100) * page.bands.length), page.bands.length - 1);
    $("agreement").tBodies[0].replaceChildren(...agreementRows().map(([name, one, other, { n, rho, p }, band]) => {
      const start = element("td");
      if (band === null) start.textContent = name;
      else {
        const button = element("button", { type: "button", className: "link", textContent: name, title: "Show this depth" });
        button.addEventListener("click", () => set({ depth: Math.floor((100 * (band + 0.5)) / page.bands.length), range: "depth" }));
        start.append(button);
      }
      const bar = element("td", { className: "number bar", textContent: rho === null ? "none" : rho.toFixed(3) });
      bar.style.setProperty("--bar", `${100 * Math.max(rho ?? 0, 0)}%`);
      const isCurrent = state.range === "depth" ? band === current : name === "all";
      return element("tr", { className: isCurrent ? "current" : "" }, start, element("td", { textContent: one }), element("td", { textContent: other }),
        element("td", { className: "number", textContent: n }), bar, element("td", { className: "number", textContent: p === null ? "" : String(Number(p.toPrecision(2))) }));
    }));
    $("agreement-hint").textContent = `Importance of the ${pair().overall.n} tokens that ${sides[0].letter} and ${second().letter} share and that count.`;
    $("chance").textContent = `p: the chance of one so large. ${pair().chance.join(" ")}`;
  }

  const rhoText = (rho) => (rho === null ? "none" : rho.toFixed(3));
  const effectRows = () => ["all", ...page.bands].map((name, row) => [name, ...page.effect.sides.flatMap(([, found]) => [found[row].rho, found[row].n])]);

  // Whether the results agree about effects, and whether importance tells them.
  function drawEffect() {
    $("effect-card").hidden = !page.effect;
    if (!page.effect) return;
    const said = page.effect.pairs.map((one, nth) => one && `${sides[0].letter} and ${sides[pairs[nth].second].letter} rank the effects of ${one.n} tokens with rho ${rhoText(one.rho)}${one.p === null ? "" : `, p ${Number(one.p.toPrecision(2))}`}.`);
    $("effect-pairs").textContent = said.filter(Boolean).join(" ");
    $("effect-hint").textContent = `Change of the log-probability of the produced token ${page.effect.measured}; its size, mean over the layers. Below, within each result: rho of importance with it, over the tokens that count and have an effect above the noise floor there.`;
    const names = page.effect.sides.flatMap(([number]) => [`rho in ${sides[number].letter}`, "tokens"]);
    $("effect").tHead.replaceChildren(element("tr", {}, ...["depth", ...names].map((textContent, i) => element("th", { scope: "col", textContent, className: i ? "number" : "" }))));
    $("effect").tBodies[0].replaceChildren(...effectRows().map(([name, ...cells]) => element("tr", {}, element("td", { textContent: name }), ...cells.map((cell, i) => element("td", { className: "number", textContent: i % 2 ? cell : rhoText(cell) })))));
  }

  // Shares of the importance in all layers, as the table on the command line has them.
  function importanceShares(side) {
    const means = side.positions.map((_, place) => {
      const values = Array.from({ length: side.n_layers }, (_, layer) => side.value[layer * side.n + place]).filter((value) => !Number.isNaN(value));
      return side.leftOut.has(place) || !values.length ? NaN : values.reduce((sum, value) => sum + value, 0) / values.length;
    });
    const total = means.reduce((sum, value) => sum + (value || 0), 0);
    return means.map((value) => value / total);
  }

  const differingRows = () => {
    const shares = [sides[0], second()].map(importanceShares);
    return pair().differing.map(([one, other, difference, band]) => [one, other, shares[0][one], shares[1][other], difference, band]);
  };

  function drawDiffering() {
    $("share-first").textContent = sides[0].letter;
    $("share-second").textContent = second().letter;
    $("differing").tBodies[0].replaceChildren(...differingRows().slice(0, N_DIFFERING).map(([one, , shareOne, shareOther, difference, band]) => {
      const button = element("button", { type: "button", className: "link", textContent: `${sides[0].positions[one]} ${tokenName(sides[0], one, 24)}`, title: "Mark it in all results" });
      button.addEventListener("click", () => choose(sides[0], one));
      const points = difference === null ? "" : `${difference < 0 ? "−" : "+"}${Math.abs(100 * difference).toFixed(1)}`;
      const numbers = [percentText(shareOne), percentText(shareOther), points].map((textContent) => element("td", { className: "number", textContent }));
      return element("tr", { className: state.token === keyAt[0][one] ? "current" : "" }, element("td", {}, button), ...numbers, element("td", { textContent: band === null ? "" : page.bands[band] }));
    }));
    const lists = [sides[0], second()].map((side, nth) => [side, pair().unmatched[nth], [second(), sides[0]][nth]]).filter(([, places]) => places.length);
    $("alone").textContent = lists.map(([side, places, other]) => {
      const texts = places.filter((place) => !side.cellAt.has(place)).map((place) => `${side.positions[place]} ${tokenName(side, place, 24)}`);
      const nPatches = places.length - texts.length;
      const shown = [...texts.slice(0, 40), ...(texts.length > 40 ? [`${texts.length - 40} more`] : []), ...(nPatches ? [`${nPatches} patches`] : [])];
      return `${side.letter} has and ${other.letter} has not: ${shown.join(", ")}.`;
    }).join(" ") || "Every token of one is in the other.";
  }

  // ---- charts ------------------------------------------------------------------------------------------------------------

  const plotlyReady = (async () => {
    const source = new TextDecoder().decode(await unzipped($("plotly-source").textContent));
    $("plotly-source").remove();
    document.head.append(element("script", { textContent: source }));
  })();

  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };
  const drawnWith = new Map();

  function layoutOf(height, more) {
    const [ink, card, grid] = ["--ink", "--card", "--grid"].map(cssColour);
    const axis = { color: ink, gridcolor: grid, zeroline: false, automargin: true };
    const layout = { height, paper_bgcolor: card, plot_bgcolor: card, font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink }, margin: { l: 48, r: 12, t: 12, b: 44 }, showlegend: false, hovermode: "closest", ...more };
    layout.xaxis = { ...axis, ...more.xaxis };
    layout.yaxis = { ...axis, ...more.yaxis };
    return layout;
  }

  async function drawChart(id, data, layout, connect) {
    const isNew = !drawnWith.has(id);
    drawnWith.set(id, true);
    $(id).style.height = `${layout.height}px`;
    await Plotly.react(id, data, layout, CONFIG);
    if (isNew) connect?.($(id));
  }

  async function drawCharts() {
    for (const side of sides) await drawHeat(side);
    await drawProfile();
    await drawDepths();
  }

  // The layer at the marked depth, and the columns of the marked tokens; a line right across, so that it is seen among hundreds.
  function shapesOf(side) {
    const [accent, depth] = [cssColour("--accent"), markedDepth()];
    const shapes = [];
    if (depth !== null) {
      const layer = pointed?.side === side && pointed.layer >= 0 ? pointed.layer : layerAt(side, depth);
      shapes.push({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: layer - 0.5, y1: layer + 0.5, line: { color: accent, width: 2 }, name: "layer" });
    }
    for (const key of new Set(markedKeys())) {
      const place = placeOf[side.number].get(key);
      if (place !== undefined) shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: place - 0.5, x1: place + 0.5, line: { color: accent, width: 2 }, name: "token" });
    }
    return shapes;
  }

  const heatHeight = () => Math.min(Math.max(9 * Math.max(...sides.map((side) => side.n_layers)), 260), 460) + 120;

  async function drawHeat(side) {
    const rows = Array.from({ length: side.n_layers }, (_, layer) => side.positions.map((_, place) => numberAt(side, place, layer)));
    const finite = rows.map((row) => row.map((value) => (Number.isFinite(value) ? value : null)));
    const scale = makeScale(state.scale, ...extent(rows.flat()));
    const unit = state.number === "share" ? percentText : shortText;
    const colorbar = { tickvals: TICKS, ticktext: TICKS.map((level) => unit(scale.value(level))), thickness: 10, outlinewidth: 0, len: 1, y: 0.5, tickfont: { size: 11 } };
    const heat = {
      type: "heatmap", x: side.positions.map((_, place) => place), y: rows.map((_, layer) => layer), z: finite.map((row) => row.map((value) => (value === null ? null : scale.level(value)))),
      customdata: finite, zmin: 0, zmax: 1, colorscale: colourScale(), colorbar, xgap: side.n < 120 ? 1 : 0, ygap: side.n < 120 ? 1 : 0, hoverinfo: "none", hoverongaps: true,
    };
    const room = Math.max(Math.floor(($(`heat-${side.number}`).getBoundingClientRect().width - 120) / 13), 4);
    const ticks = side.positions.map((_, place) => place).filter((place) => place % Math.ceil(side.n / room) === 0);
    const every = [1, 2, 5, 10, 20, 50].find((one) => side.n_layers <= 16 * one) ?? 100;
    const layout = layoutOf(heatHeight(), {
      plot_bgcolor: cssColour("--none"), margin: { l: 44, r: 10, t: 10, b: 120 }, shapes: shapesOf(side),
      xaxis: { range: [-0.5, side.n - 0.5], showgrid: false, tickangle: -90, tickfont: { size: 11 }, automargin: false, tickvals: ticks, ticktext: ticks.map((place) => plotlyText(`${side.positions[place]} ${tokenName(side, place, 12)}${side.leftOut.has(place) ? " ×" : ""}`)) },
      yaxis: { tickmode: "linear", tick0: 0, dtick: every, range: [-0.5, side.n_layers - 0.5], showgrid: false, fixedrange: true, title: { text: "layer", standoff: 4 } },
    });
    await drawChart(`heat-${side.number}`, [heat], layout, (chart) => {
      chart.on("plotly_hover", ({ points: [one], event }) => point({ side, place: one.x, layer: one.y }, event.clientX, event.clientY));
      chart.on("plotly_unhover", () => point(null));
      chart.on("plotly_click", ({ points: [one] }) => {
        state.depth = Math.floor(depthOf(side, one.y));
        choose(side, one.x);
      });
    });
    $(`heat-${side.number}`).setAttribute("aria-label", `Heat map of ${side.letter}, ${side.n_layers} layers by ${side.n} tokens. Its numbers can be saved as CSV.`);
  }

  async function drawProfile() {
    const key = shownKey();
    const places = partners(key);
    const shown = sides.filter((side) => places[side.number] >= 0);
    const profiles = shown.map((side) => Array.from({ length: side.n_layers }, (_, layer) => numberAt(side, places[side.number], layer)));
    const [high] = extent(profiles.flat());
    const up = state.scale === "sqrt" ? (value) => Math.sqrt(Math.max(value, 0)) : (value) => value;
    const data = shown.map((side, nth) => ({
      type: "scatter", mode: "lines+markers", name: plotlyText(`${side.letter} ${visible(side.name)}`), x: profiles[nth].map((_, layer) => depthOf(side, layer)),
      y: profiles[nth].map((value) => (Number.isFinite(value) && (state.scale !== "log" || value > 0) ? up(value) : null)), customdata: profiles[nth], hoverinfo: "none",
      line: { color: colourOf(side), dash: DASHES[side.number], width: 2 }, marker: { symbol: SYMBOLS[side.number], size: 6 },
    }));
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => part * (high || 1));
    const unit = state.number === "share" ? percentText : shortText;
    const yaxis = { title: { text: state.number === "share" ? "share of the layer" : $("value-name").textContent, standoff: 8 } };
    if (state.scale === "log") Object.assign(yaxis, { type: "log", dtick: 1, exponentformat: "power" });
    else Object.assign(yaxis, { type: "linear", tickvals: ticks.map(up), ticktext: ticks.map(unit), range: [0, up((high || 1) * 1.06)] });
    const shapes = state.range === "depth" ? [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: state.depth, x1: state.depth, line: { color: cssColour("--accent"), width: 2, dash: "dot" } }] : [];
    const layout = layoutOf(300, { shapes, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 56, r: 12, t: 36, b: 44 }, xaxis: { range: [0, 100], ticksuffix: " %", title: { text: "depth", standoff: 6 } }, yaxis });
    await drawChart("profile", data, layout, (chart) => {
      chart.on("plotly_hover", ({ points: [one], event }) => {
        const side = sides.filter(({ number }) => partners(shownKey())[number] >= 0)[one.curveNumber];
        point({ side, place: placeOf[side.number].get(shownKey()), layer: one.pointNumber }, event.clientX, event.clientY);
      });
      chart.on("plotly_unhover", () => point(null));
      chart.on("plotly_click", ({ points: [one] }) => set({ depth: Math.floor(one.x), range: "depth" }));
    });
    const [first] = shown;
    const isOut = shown.some((side) => side.leftOut.has(places[side.number]));
    $("profile-hint").textContent = first ? `${tokenName(first, places[first.number])}, ${shown.map((side) => `position ${side.positions[places[side.number]]} of ${side.letter}`).join(", ")}${isOut ? ", left out as an attention sink" : state.token ? "" : " (no token is chosen: this one differs most)"}` : "";
    $("profile").setAttribute("aria-label", `Profile over the depth of ${$("profile-hint").textContent}`);
  }

  async function drawDepths() {
    $("depths-card").hidden = page.scale === "share";
    if (page.scale === "share") return;
    const data = sides.map((side) => ({ type: "bar", name: plotlyText(`${side.letter} ${visible(side.name)}`), x: page.bands, y: side.depth_shares.map((share) => (share === null ? null : 100 * share)), marker: { color: colourOf(side) }, hovertemplate: `${side.letter}: %{y:.1f} %<extra></extra>` }));
    const layout = layoutOf(260, { barmode: "group", showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 52, r: 12, t: 36, b: 44 }, xaxis: { type: "category" }, yaxis: { ticksuffix: " %", rangemode: "tozero" } });
    await drawChart("depths", data, layout);
    $("depths").setAttribute("aria-label", "Part of each result's impact in each part of the depth. Its numbers can be saved as CSV.");
  }

  // ---- saving what is shown ----------------------------------------------------------------------------------------------

  const fileName = (card) => `compare-${sides.map((side) => side.name).join("-")}-${card}`.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 120);
  const orNothing = (value) => (Number.isFinite(value) ? value : null);
  const heatRows = (side) => [
    ["layer", "token_masked", "token_position", "aligned_with", "distance", "compared", "share"],
    Array.from({ length: side.n_layers * side.n }, (_, at) => {
      const [layer, place] = [Math.floor(at / side.n), at % side.n];
      const others = partners(keyAt[side.number][place]).flatMap((one, number) => (number === side.number || one < 0 ? [] : [`${sides[number].letter} ${sides[number].positions[one]}`]));
      return [layer, side.texts[place], side.positions[place], others.join(" "), orNothing(side.distance[at]), orNothing(side.value[at]), orNothing(side.share[at])];
    }),
  ];
  const CSV = {
    agreement: () => [["depth", "layers_first", "layers_second", "tokens", "rho", "p"], agreementRows().map(([name, one, other, { n, rho, p }]) => [name, one, other, n, rho, p])],
    differing: () => [["token", "position_first", "position_second", "share_first", "share_second", "difference", "depth"], differingRows().map(([one, other, a, b, difference, band]) => [sides[0].texts[one], sides[0].positions[one], second().positions[other], orNothing(a), orNothing(b), difference, band === null ? "" : page.bands[band]])],
    profile: () => [["result", "layer", "depth", "position", "compared", "share"], sides.flatMap((side) => {
      const place = placeOf[side.number].get(shownKey());
      if (place === undefined) return [];
      return Array.from({ length: side.n_layers }, (_, layer) => [side.letter, layer, depthOf(side, layer) / 100, side.positions[place], orNothing(side.value[layer * side.n + place]), orNothing(side.share[layer * side.n + place])]);
    })],
    effect: () => [["depth", ...page.effect.sides.flatMap(([number]) => [`rho_${sides[number].letter}`, `tokens_${sides[number].letter}`])], effectRows()],
    depths: () => [["depth", ...sides.map((side) => side.letter)], page.bands.map((name, band) => [name, ...sides.map((side) => side.depth_shares[band])])],
  };

  function makeExports() {
    for (const place of document.querySelectorAll(".exports[data-card]")) {
      const { card } = place.dataset;
      const title = place.closest("section").querySelector("h2").textContent;
      const csv = element("button", { type: "button", textContent: "CSV", "aria-label": `Save the numbers of ${title} as CSV` });
      csv.addEventListener("click", () => downloadCsv(fileName(card), ...CSV[card]()));
      if ($(card).classList.contains("chart")) {
        const png = element("button", { type: "button", textContent: "PNG", "aria-label": `Save ${title} as PNG` });
        png.addEventListener("click", () => downloadChart(fileName(card), $(card)));
        place.append(png);
      }
      place.append(csv);
    }
  }

  // ---- keys and controls -------------------------------------------------------------------------------------------------

  const flip = (name, one, other) => set({ [name]: state[name] === one ? other : one });
  // From layer to layer of the result that has most of them.
  function moveDepth(by) {
    const most = sides.reduce((one, other) => (other.n_layers > one.n_layers ? other : one));
    const layer = Math.min(Math.max(layerAt(most) + (state.range === "depth" ? by : 0), 0), most.n_layers - 1);
    set({ depth: Math.floor(depthOf(most, layer)), range: "depth" });
  }
  const KEYS = {
    ArrowLeft: () => moveDepth(-1),
    ArrowRight: () => moveDepth(1),
    a: () => flip("range", "all", "depth"),
    v: () => flip("number", "share", "value"),
    s: () => set({ scale: SCALES[(SCALES.indexOf(state.scale) + 1) % SCALES.length] }),
    Escape: () => set({ token: "" }),
  };

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const { target } = event;
    if (!KEYS[name] || target.matches("select")) return;
    if (name.startsWith("Arrow") && target.matches("input[type='radio'], input[type='range']")) return;
    event.preventDefault();
    KEYS[name]();
  }

  // Within a group one token takes part in the tab order; arrows move from token to token, and what has the focus is marked.
  function makeRoving(group) {
    group.addEventListener("keydown", (event) => {
      const tokens = [...group.querySelectorAll(".token")];
      const at = tokens.indexOf(document.activeElement);
      if (at < 0) return;
      if (event.key === "Enter" || event.key === " ") tokens[at].click();
      else {
        const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: tokens.length - 1 }[event.key];
        if (to === undefined) return;
        const next = tokens[Math.min(Math.max(to, 0), tokens.length - 1)];
        tokens.forEach((token) => { token.tabIndex = token === next ? 0 : -1; });
        next.focus();
      }
      event.preventDefault();
      event.stopPropagation();
    });
    group.addEventListener("pointerdown", (event) => { event.preventDefault(); document.activeElement?.blur(); });
  }

  function connect() {
    $("value-name").textContent = { relative: "Over the norm", cosine: "Distance", share: "Distance" }[page.scale];
    if (page.scale === "share") $("number").closest("fieldset").hidden = true;
    if (pairs.length > 1) {
      $("pair-chooser").hidden = false;
      $("pair").replaceChildren(...pairs.map(({ second: other }, value) => element("option", { value, textContent: `${sides[0].letter} and ${sides[other].letter}` })));
      $("pair").addEventListener("change", (event) => set({ pair: Number(event.target.value) }));
    }
    const options = sides.flatMap((side) => side.positions.map((_, place) => [side, place])).filter(([side, place]) => side.number === 0 || placeOf[0].get(keyAt[side.number][place]) === undefined);
    $("token").replaceChildren(element("option", { value: "", textContent: "none" }), ...options.map(([side, place]) => element("option", { value: keyAt[side.number][place], textContent: `${side.letter} ${side.positions[place]} ${tokenName(side, place, 24)}` })));
    $("token").addEventListener("change", (event) => set({ token: event.target.value }));
    $("depth").addEventListener("input", (event) => set({ depth: Number(event.target.value), range: "depth" }));
    for (const name of ["range", "number", "scale"]) $(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
    $("theme").addEventListener("click", () => set({ theme: { auto: theme() === "dark" ? "light" : "dark", light: "dark", dark: "light" }[state.theme] }));
    $("copy-link").addEventListener("click", copyLink);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => set({}));
    addEventListener("hashchange", () => { state = fromFragment(); set({}); });
    addEventListener("keydown", onKey);
    addEventListener("scroll", () => { $("tip").hidden = true; }, { passive: true });
    let resized = 0;
    addEventListener("resize", () => {
      clearTimeout(resized);
      resized = setTimeout(() => set({}), 150);
    });
    makeExports();
  }

  async function copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      $("copy-link").textContent = "Copied";
    } catch {
      $("copy-link").textContent = "See address bar";
    }
    setTimeout(() => { $("copy-link").textContent = "Copy link"; }, 1500);
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old: it has no DecompressionStream");
    state = fromFragment();
    await readDistances();
    makeSides();
    drawResults();
    connect();
    await set({});
  }

  start().catch((error) => {
    $("problem").hidden = false;
    $("problem").textContent = `The page can't be shown: ${error.message}`;
    throw error;
  });
})();
