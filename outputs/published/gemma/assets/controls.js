// Drop-downs, scales and sliders of a figure as controls of the page: they answer the keyboard, a finger and a
// screen reader, which those that plotly draws do not. Only figures of this report (they carry a mark) are changed.
"use strict";
window.figureControls = (function () {
  const STEP_TIME = 700; // milliseconds a step stays while a slider plays
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  const METHODS = ["restyle", "relayout", "update", "animate"]; // of plotly, that a figure's menu may name
  const NAMED = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'", nbsp: " " };

  // What plotly's pseudo-HTML says, as text: its few tags go, its entities are read once, all else stays.
  function plain(text) {
    return String(text === undefined || text === null ? "" : text)
      .replace(/<br\s*\/?>/gi, " ")
      .replace(/<\/?(?:b|i|em|strong|sup|sub|span|a)(?:\s[^<>]*)?>/gi, "")
      .replace(/&(lt|gt|amp|quot|apos|nbsp);|&#(\d{1,6});/g, function (_, name, code) {
        return name ? NAMED[name] : String.fromCodePoint(Number(code));
      })
      .replace(/\s+/g, " ").trim();
  }

  function element(name, attributes, parent) {
    const made = Object.assign(document.createElement(name), attributes);
    if (parent) { parent.append(made); }
    return made;
  }

  function changed(target) { target.dispatchEvent(new CustomEvent("figurechange")); }

  function press(target, button) {
    if (!METHODS.includes(button.method)) { return null; }
    return window.Plotly[button.method].apply(null, [target].concat(button.args)).then(function () { changed(target); });
  }

  function menu(target, i, parent) {
    const given = target.menus[i].buttons;
    const names = given.map(function (button) { return plain(button.label); });
    const scale = names.every(function (name) { return /^(linear|log) [xy]$/.test(name); });
    const label = element("label", { textContent: (scale ? "Scale" : "Show") + " " }, parent);
    const select = element("select", { className: "figure-menu" }, label);
    names.forEach(function (name, k) { element("option", { value: String(k), textContent: name }, select); });
    select.value = String(target.menus[i].active || 0);
    select.setAttribute("aria-label", (scale ? "Scale of " : "What to show in ") + target.dataset.short);
    select.apply = function () { return press(target, target.menus[i].buttons[Number(select.value)]); };
    select.addEventListener("input", select.apply);
    return select;
  }

  function slider(target, parent, after) {
    const given = target.slider, last = given.steps.length - 1;
    const prefix = plain((given.currentvalue || {}).prefix);
    const row = element("div", { className: "figure-slider" });
    after.after(row);
    const label = element("label", { className: "figure-step" }, row);
    const said = element("output", {}, label);
    const range = element("input", { type: "range", min: "0", max: String(last), step: "1" }, label);
    range.value = String(given.active || 0);
    range.setAttribute("aria-label", (prefix.replace(/[:=]\s*$/, "") || "Step") + ", " + target.dataset.short);
    function name() {
      const text = (prefix ? prefix + " " : "") + plain(target.slider.steps[Number(range.value)].label);
      said.textContent = text;
      range.setAttribute("aria-valuetext", text);
    }
    range.apply = function () {
      const step = target.slider.steps[Number(range.value)];
      const how = Object.assign({}, step.args[1]);
      if (calm.matches) { how.transition = { duration: 0 }; }
      name();
      return window.Plotly.animate(target, step.args[0], how).then(function () { changed(target); }, function () {
        // A step that comes while another moves ends that one: nothing is wrong.
      });
    };
    name();
    if (last > 0) { player(range, parent, last); }
    const stop = function () { if (range.stop) { range.stop(); } };
    range.addEventListener("input", function () { stop(); range.apply(); });
    return range;
  }

  function player(range, parent, last) {
    const button = element("button", { type: "button", textContent: "▶ Play" }, parent);
    let timer = null;
    range.stop = function () {
      clearInterval(timer);
      timer = null;
      button.textContent = "▶ Play";
    };
    function next() {
      if (Number(range.value) >= last) { range.stop(); return; }
      range.value = String(Number(range.value) + 1);
      range.apply();
    }
    button.addEventListener("click", function () {
      if (timer !== null) { range.stop(); return; }
      if (Number(range.value) >= last) { range.value = "0"; range.apply(); }
      button.textContent = "❚❚ Stop";
      timer = setInterval(next, STEP_TIME);
    });
  }

  // Takes menus and slider out of a figure that is about to be drawn, with the room that they had.
  function take(target, figure) {
    const layout = figure.layout;
    const room = (layout.meta || {}).rkcnn_room; // what figures/display.py keeps free, in pixels
    if (!room) { return; }
    const all = layout.updatemenus || [];
    target.menus = all.filter(function (one) { return one.buttons.every(function (b) { return b.method !== "animate"; }); });
    target.slider = (layout.sliders || [])[0];
    layout.margin = Object.assign({}, layout.margin, { t: layout.margin.t - room.t, b: layout.margin.b - room.b });
    layout.height -= room.t + room.b;
    delete layout.updatemenus;
    delete layout.sliders;
  }

  // Puts the controls in place, once; after a figure was drawn anew, sets it to what they say.
  function place(target) {
    if (target.controls) {
      return target.controls.reduce(function (before, one) {
        const first = one.type === "range" ? target.slider.active : target.menus[target.controls.indexOf(one)].active;
        return Number(one.value) === Number(first || 0) ? before : before.then(one.apply);
      }, Promise.resolve());
    }
    target.controls = [];
    if (!target.slider && !(target.menus || []).length) { return Promise.resolve(); }
    const bar = element("div", { className: "figure-controls" });
    target.before(bar);
    target.menus.forEach(function (_, i) { target.controls.push(menu(target, i, bar)); });
    if (target.slider) { target.controls.push(slider(target, bar, target)); }
    return Promise.resolve();
  }

  return { take: take, place: place, plain: plain };
})();
