// Feature cards: opened by a point of a figure, by number or token, or by #card-ARM-NUMBER.
// Whatever comes from data is set as text, never as markup.
"use strict";
(function () {
  const SHADE = "242, 108, 13", STRONGEST = 0.5; // as blocks.html.j2 and book.py have them
  const MOST_LISTED = 60;
  const root = document.querySelector(".feature-cards");
  if (!root) { return; }
  const record = JSON.parse(root.querySelector(".card-data").textContent);
  const byId = new Map(record.cards.map(function (card) { return [card.id, card]; }));
  const arms = Array.from(new Set(record.cards.map(function (card) { return card.arm; })));
  const form = root.querySelector("form"), status = root.querySelector(".card-status");
  const list = root.querySelector(".card-list"), place = root.querySelector(".feature-card");
  let current = null, from = null;

  function add(parent, tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) { made.textContent = text; }
    if (className) { made.className = className; }
    parent.appendChild(made);
    return made;
  }

  function rounded(value) { return String(Number(value.toPrecision(3))); }
  function signed(value) { return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2); }
  function share(value) { return value === 0 ? "none" : rounded(100 * value) + " %"; }
  function named(card) { return card.arm + ", seed " + card.seed + ", latent " + card.latent; }
  function ofArm(arm) { return record.cards.filter(function (card) { return card.arm === arm; }); }

  // ---------------------------------------------------------------------------------------------- one card

  function drawExample(parent, card, example) {
    const [quantile, start, length, peak, active] = example;
    const levels = new Array(length).fill(0);
    for (let i = 0; i < active.length; i += 2) { levels[active[i]] = active[i + 1]; }
    const item = add(parent, "li");
    const where = quantile === 100 ? "largest" : quantile + " % quantile";
    add(item, "small", where + ", " + rounded(card.largest * levels[peak] / 100) + ":");
    const line = add(item, "span", null, "context");
    record.text.slice(start, start + length).forEach(function (index, i) {
      if (i) { line.appendChild(document.createTextNode(record.between)); }
      const token = add(line, "span", record.vocabulary[index], "token" + (i === peak ? " peak" : ""));
      if (levels[i]) {
        token.style.backgroundColor = "rgba(" + SHADE + ", " + STRONGEST * levels[i] / 100 + ")";
        token.title = "activation " + rounded(card.largest * levels[i] / 100);
      }
    });
  }

  function drawEffects(parent, card) {
    if (!card.raised.length) { return; }
    const line = add(parent, "p");
    [["Raises ", card.raised], ["; lowers ", card.lowered]].forEach(function (part) {
      add(line, "span", part[0]);
      part[1].forEach(function (effect, i) {
        if (i) { line.appendChild(document.createTextNode(", ")); }
        add(line, "code", record.vocabulary[effect[0]], "token");
        line.appendChild(document.createTextNode(" " + signed(effect[1])));
      });
    });
    line.appendChild(document.createTextNode(". "));
    add(line, "small", record.words.effects);
  }

  function draw(card) {
    current = card;
    place.textContent = "";
    place.hidden = false;
    const title = add(place, "p", null, "card-title");
    add(title, "strong", named(card));
    title.appendChild(document.createTextNode(card.group === card.arm ? " " : " (" + card.group + ") "));
    add(title, "a", "link to this card").href = "#card-" + card.id;
    const told = add(place, "ul");
    card.facts.forEach(function (line) { add(told, "li", line); });
    if (card.examples.length) {
      const shown = add(place, "ol");
      card.examples.forEach(function (example) { drawExample(shown, card, example); });
    } else { add(place, "p", record.words["no contexts"]); }
    drawEffects(place, card);
    form.elements.arm.value = card.arm;
    list.querySelectorAll("button").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.card === card.id));
    });
  }

  function open(id) {
    const card = byId.get(id);
    if (!card) { return false; }
    draw(card);
    say("Card of " + named(card) + ": fires on " + share(card.rate) + " of the tokens.");
    if (location.hash !== "#card-" + id) { location.hash = "card-" + id; }
    return true;
  }

  // ---------------------------------------------------------------------------------------------- finding one

  function say(text) {
    status.textContent = text + " ";
    if (from) { add(status, "a", "Back to the figure").href = "#" + from; }
  }

  function offer(cards, text) {
    list.textContent = "";
    cards.slice(0, MOST_LISTED).forEach(function (card) {
      const button = add(list, "button", card.arm + " " + card.latent);
      button.type = "button";
      button.dataset.card = card.id;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", function () { open(card.id); });
    });
    say(text + (cards.length > MOST_LISTED ? " The first " + MOST_LISTED + " are listed." : ""));
  }

  function matching(card, words) {
    const shown = card.examples.map(function (example) { return record.text[example[1] + example[3]]; });
    return shown.concat(card.raised.map(function (effect) { return effect[0]; })).some(function (index) {
      return record.vocabulary[index].toLowerCase().includes(words);
    });
  }

  function find() {
    const arm = form.elements.arm.value, words = form.elements.query.value.trim().toLowerCase();
    from = null;
    if (/^\d+$/.test(words)) {
      if (open(arm + "-" + Number(words))) { return; }
      const had = ofArm(arm).length;
      say("Latent " + words + " of " + arm + " has no card: " + had + " of its " + record.latents[arm] +
        " latents have one, numbered from 0.");
    } else if (words) {
      const found = ofArm(arm).filter(function (card) { return matching(card, words); });
      offer(found, found.length + " latents of " + arm + " fire most on, or raise, a token with “" + words + "”.");
    } else { say("Type a latent's number or a token."); }
  }

  function step(by) {
    const cards = ofArm(form.elements.arm.value);
    const at = cards.indexOf(current);
    open(cards[at < 0 ? 0 : (at + by + cards.length) % cards.length].id);
  }

  // ---------------------------------------------------------------------------------------------- figures

  // What the slider of a figure stands at, such as "step 160"; controls.js puts it on the page.
  function stepOf(target) {
    const range = (target.controls || []).find(function (control) { return control.type === "range"; });
    return range ? target.slider.steps[Number(range.value)].label : "step 0";
  }

  // What a trace says of itself, or null; figures hold names escaped.
  function readMeta(point) {
    const meta = point.data.meta;
    if (!meta || !meta.rkcnn_bins) { return null; }
    return Object.fromEntries(Object.entries(meta).map(function (entry) {
      return [entry[0], window.figureControls.plain(entry[1])];
    }));
  }

  // The bin of a histogram that was clicked, as the cards of the first seed that lie in it.
  function inBin(point, target) {
    const meta = readMeta(point), edges = point.fullData.x;
    const low = edges[point.pointNumber], high = edges[Math.min(point.pointNumber + 1, edges.length - 1)];
    const isLast = point.pointNumber >= edges.length - 2; // the last bin holds its upper end too
    function within(value) { return value >= low && (value < high || isLast); }
    if (meta.rkcnn_bins === "cosine") {
      const label = stepOf(target);
      const at = Math.max(0, record.steps.indexOf(Number(label.replace("step ", ""))));
      return [record.cards.filter(function (card) { return card.group === meta.group && within(card.moved[at]); }),
        "have a cosine of " + low.toFixed(2) + " to " + high.toFixed(2) + " with their start at " + label];
    }
    const cards = ofArm(meta.arm);
    if (meta.rkcnn_bins === "never") {
      return [cards.filter(function (card) { return card.rate === 0; }), "never fire"];
    }
    return [cards.filter(function (card) { return card.rate > 0 && within(Math.log10(card.rate)); }),
      "fire on " + share(Math.pow(10, low)) + " to " + share(Math.pow(10, high)) + " of the tokens"];
  }

  function clicked(event, target) {
    const point = event.points[0], meta = readMeta(point);
    const figure = target.closest("figure");
    if (typeof point.customdata === "string" && byId.has(point.customdata)) {
      from = figure && figure.id;
      open(point.customdata);
    } else if (meta) {
      from = figure && figure.id;
      const name = meta.arm || meta.group;
      if (meta.arm && !arms.includes(meta.arm)) {
        offer([], "No latent of " + name + " has a card: they are of " + arms.join(" and ") + ".");
      } else {
        const [cards, told] = inBin(point, target);
        offer(cards, cards.length + " latents of " + name + ", seed 0, " + told + " (the histogram counts all seeds).");
      }
    } else { return; }
    const box = root.getBoundingClientRect();
    if (box.top < 0 || box.top > window.innerHeight * 0.6) { root.scrollIntoView(); }
  }

  document.addEventListener("rkcnn-drawn", function (drawn) {
    drawn.target.on("plotly_click", function (event) { clicked(event, drawn.target); });
  });

  // ---------------------------------------------------------------------------------------------- start

  function fromAddress() {
    if (!location.hash.startsWith("#card-")) { return; }
    const id = location.hash.slice("#card-".length);
    if (current && current.id === id) { return; }
    if (!open(id)) { say("This page has no card “" + id + "”."); }
    root.scrollIntoView();
  }

  arms.forEach(function (arm) { add(form.elements.arm, "option", arm).value = arm; });
  form.hidden = false;
  form.addEventListener("submit", function (event) { event.preventDefault(); find(); });
  form.elements.previous.addEventListener("click", function () { step(-1); });
  form.elements.next.addEventListener("click", function () { step(1); });
  form.elements.arm.addEventListener("change", function () {
    const same = current && byId.get(form.elements.arm.value + "-" + current.latent);
    open((same || ofArm(form.elements.arm.value)[0]).id);
  });
  root.querySelector(".card-fallback").remove();
  const first = record.featured.map(function (id) { return byId.get(id); }).filter(Boolean);
  offer(first, record.cards.length + " latents have a card. Click a point of a figure, or find one by number or " +
    "token. Listed: those at quartiles and 90 % of the firing rates.");
  if (first.length || record.cards.length) { draw(first[0] || record.cards[0]); }
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
  // Figures that are drawn later move what is below them: a page opened by a card's link stays there until touched.
  let held = location.hash.startsWith("#card-");
  ["wheel", "touchstart", "keydown", "mousedown"].forEach(function (name) {
    window.addEventListener(name, function () { held = false; }, { once: true, passive: true });
  });
  function stay() { if (held) { setTimeout(function () { root.scrollIntoView(); }, 0); } }
  window.addEventListener("load", stay);
  document.addEventListener("rkcnn-drawn", stay);
})();
