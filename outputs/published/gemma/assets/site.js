// Draws the figures of a page from the JSON beside them, in the page's own colours, and unfolds code.
"use strict";
(function () {
  const NARROW = 620; // pixels below which legends and menus are stacked
  const LEGEND_ROW = 21;
  const MENU_ROW = 40;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const hoverless = window.matchMedia("(hover: none)");
  const drawn = [];

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // Colours come through the template, so that what a figure sets itself stays.
  function themed(layout) {
    const axis = {
      gridcolor: colour("--plot-grid"), linecolor: colour("--plot-axis"),
      tickcolor: colour("--plot-axis"), zerolinecolor: colour("--plot-zero"),
    };
    const template = layout.template || {};
    const base = template.layout || {};
    const menu = { bgcolor: colour("--menu"), bordercolor: colour("--menu-line") };
    layout.template = Object.assign({}, template, {
      layout: Object.assign({}, base, {
        font: Object.assign({}, base.font, { color: colour("--plot-ink") }),
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: Object.assign({}, base.xaxis, axis), yaxis: Object.assign({}, base.yaxis, axis),
        modebar: Object.assign({ bgcolor: colour("--page"), color: colour("--soft"), activecolor: colour("--link") }, base.modebar),
        updatemenudefaults: Object.assign({}, base.updatemenudefaults, menu),
        sliderdefaults: Object.assign({}, base.sliderdefaults, menu, { activebgcolor: colour("--menu-active") }),
      }),
    });
    return layout;
  }

  function legendRows(figure) {
    const names = new Set();
    figure.data.forEach(function (trace) {
      if (trace.showlegend !== false && trace.visible !== false && trace.name) { names.add(trace.name); }
    });
    let rows = 1, used = 0;
    names.forEach(function (name) {
      const width = 46 + 7 * Math.min(name.length, 40);
      if (used && used + width > 340) { rows += 1; used = 0; }
      used += width;
    });
    return rows;
  }

  function wrapped(text, columns) {
    const lines = [""];
    String(text).split(" ").forEach(function (word) {
      const last = lines[lines.length - 1];
      if (last && (last + " " + word).length > columns) { lines.push(word); } else {
        lines[lines.length - 1] = last ? last + " " + word : word;
      }
    });
    return lines.join("<br>");
  }

  // Axis titles, also those that a menu sets later; returns the lines of the longest x title.
  function wrapTitles(layout, menus) {
    const columns = { xaxis: 30, yaxis: 42 };
    let lines = 1;
    function wrap(text, axis) {
      const result = wrapped(text, columns[axis]);
      if (axis === "xaxis") { lines = Math.max(lines, result.split("<br>").length); }
      return result;
    }
    Object.keys(columns).forEach(function (axis) {
      const title = layout[axis] && layout[axis].title;
      if (title && title.text) {
        title.text = wrap(title.text, axis);
        title.font = Object.assign({ size: 12 }, title.font);
      }
      (layout.updatemenus || []).concat(menus || []).forEach(function (menu) {
        (menu.buttons || []).forEach(function (button) {
          (button.args || []).forEach(function (part) {
            const key = axis + ".title.text";
            if (part && part[key]) { part[key] = wrap(part[key], axis); }
          });
        });
      });
    });
    return lines;
  }

  // On a phone: legend below the plot, menus one above the other, narrow margins.
  function narrowed(figure, width, ownMenus) {
    const layout = figure.layout;
    const margin = layout.margin = Object.assign({ t: 30, b: 58, l: 60, r: 24 }, layout.margin);
    layout.height = layout.height || 450;
    margin.l = Math.min(margin.l, 44);
    margin.r = (layout.sliders || []).length ? 26 : 10;
    const titleRoom = 17 * (wrapTitles(layout, ownMenus) - 1);
    margin.b += titleRoom;
    layout.height += titleRoom;
    if (layout.yaxis && layout.yaxis.scaleanchor) { // equal aspect: no taller than the plot is wide
      layout.height = Math.min(layout.height, width - margin.l - margin.r + margin.t + margin.b);
    }
    const menus = layout.updatemenus || [];
    layout.updatemenus = menus.map(function (menu, i) {
      const pad = Object.assign({}, menu.pad, { b: 10 + MENU_ROW * (menus.length - 1 - i) });
      return Object.assign({}, menu, { x: 0, xanchor: "left", pad: pad });
    });
    const more = MENU_ROW * Math.max(0, menus.length - 1);
    margin.t += more;
    layout.height += more;
    if (layout.showlegend) {
      const room = LEGEND_ROW * legendRows(figure) + 10;
      const below = ((layout.sliders || []).length ? 132 : 50) + titleRoom;
      layout.height += room;
      margin.b += room;
      const plot = Math.max(80, layout.height - margin.t - margin.b);
      layout.legend = Object.assign({}, layout.legend, {
        orientation: "h", x: 0, xanchor: "left", y: -below / plot, yanchor: "top", font: { size: 11 },
      });
    }
    return figure;
  }

  function draw(target) {
    const source = document.getElementById(target.id + "-data");
    let figure = JSON.parse(source.textContent);
    figure.layout = themed(figure.layout || {});
    figure.layout.height = figure.layout.height || Number(target.dataset.height); // else it would run out of its place
    const narrow = target.clientWidth < NARROW;
    window.figureControls.take(target, figure);
    if (narrow) { figure = narrowed(figure, target.clientWidth, target.menus); }
    figure.config = Object.assign({ responsive: true, displaylogo: false }, figure.config);
    // The tool bar comes on hover; where nothing hovers, or there is no room, it would stand on the drawing for ever.
    if (narrow || hoverless.matches) { figure.config.displayModeBar = false; }
    if (figure.config.displayModeBar) { figure.config.displayModeBar = "hover"; }
    target.dataset.narrow = String(narrow);
    target.style.minHeight = figure.layout.height + "px";
    return window.Plotly.newPlot(target, figure).then(function () {
      target.style.minHeight = "";
      describe(target);
      target.dispatchEvent(new CustomEvent("rkcnn-drawn", { bubbles: true })); // other scripts listen to its points
      return window.figureControls.place(target);
    });
  }

  // A figure that cannot be drawn says so and holds up no other.
  function attempt(target) {
    return Promise.resolve().then(function () { return draw(target); }).catch(function (error) {
      target.textContent = "This figure could not be drawn: " + error.message;
      console.error(error);
      throw error;
    });
  }

  // One drawing is the image; plotly lays others over it, and buttons beside it that no image may hold.
  function describe(target) {
    target.querySelectorAll(".main-svg").forEach(function (svg, i) {
      if (i) { svg.setAttribute("aria-hidden", "true"); return; }
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", target.getAttribute("aria-label"));
    });
  }

  function drawAll() {
    const targets = Array.from(document.querySelectorAll(".plot"));
    targets.forEach(function (target) { target.style.minHeight = target.dataset.height + "px"; });
    // One after another, so that the page stays responsive while the rest is drawn.
    return targets.reduce(function (before, target) {
      return before.then(function () {
        return new Promise(function (resolve) {
          setTimeout(function () {
            attempt(target).then(function () { drawn.push(target); }).then(resolve, resolve);
          }, 0);
        });
      });
    }, Promise.resolve()).then(function () { document.documentElement.dataset.figures = String(drawn.length); });
  }

  function redraw(target) {
    window.Plotly.purge(target);
    return attempt(target);
  }

  function codeButton() {
    const button = document.getElementById("toggle-code");
    const folds = document.querySelectorAll("details.code");
    if (!button || !folds.length) { return; }
    button.hidden = false;
    button.addEventListener("click", function () {
      const open = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(open));
      button.textContent = open ? "Hide all code" : "Show all code";
      folds.forEach(function (fold) { fold.open = open; });
    });
  }

  // Figures change their height as they are drawn: an address with a place in it keeps its place meanwhile.
  function keepPlace() {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    let free = !place;
    ["wheel", "touchmove", "keydown", "pointerdown"].forEach(function (name) {
      window.addEventListener(name, function () { free = true; }, { once: true, passive: true });
    });
    return function () { if (!free) { place.scrollIntoView(); } };
  }

  codeButton();
  const contents = document.querySelector(".contents details");
  if (contents && window.matchMedia("(max-width: 68rem)").matches) { contents.open = false; }
  drawAll().then(keepPlace());
  dark.addEventListener("change", function () { drawn.forEach(redraw); });
  // On paper: light colours, and no wider than the sheet (a drawing does not follow its page there by itself).
  function onPaper(printing) {
    document.documentElement.classList.toggle("printing", printing);
    drawn.forEach(redraw);
  }
  window.addEventListener("beforeprint", function () { onPaper(true); });
  window.addEventListener("afterprint", function () { onPaper(false); });
  window.addEventListener("resize", function () {
    drawn.forEach(function (target) {
      if (String(target.clientWidth < NARROW) !== target.dataset.narrow) { redraw(target); }
    });
  });
})();
