"use strict";
(() => {
  // Everything here is a comfort: without scripts the page shows the same content.
  const root = document.documentElement;
  const stored = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
  if (stored === "light" || stored === "dark") root.dataset.theme = stored;

  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;

  const themeButton = () => {
    const button = document.getElementById("theme");
    const show = () => { button.textContent = isDark() ? "Light" : "Dark"; };
    button.setAttribute("aria-label", "Switch between light and dark");
    button.hidden = false;
    show();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a private window */ }
      show();
    });
  };

  const copyButton = (button) => {
    const code = button.parentElement.querySelector("code");
    const name = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {  // pages opened from a file have no clipboard in some browsers
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = name; }, 1500);
    });
  };

  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    heads.forEach((head, column) => {
      const numeric = head.classList.contains("number");
      head.querySelector("button").addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const number = (text) => ({ nan: NaN, inf: Infinity, "-inf": -Infinity })[text] ?? Number(text);
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          if (!x || !y) return !x - !y;  // empty cells stay at the end, whatever the direction
          const order = numeric ? number(x) - number(y) || 0 : compare(x, y);
          return up ? order : -order;
        });
        body.append(...rows);
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
      });
    });
  };

  const searchable = (table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length <= 15) return;  // as many as the box of a table shows at once
    const box = table.closest(".scroll");
    const search = document.createElement("input");
    const found = document.createElement("p");
    search.type = "search";
    search.className = "search";
    search.placeholder = "Search";
    search.setAttribute("aria-label", `Search in ${box.getAttribute("aria-label")}`);
    found.className = "found";
    found.setAttribute("role", "status");
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        count += !row.hidden;
      }
      found.textContent = words.length ? `${count} of ${rows.length} rows` : "";
    });
    box.before(search);
    box.after(found);
  };

  // What is wider or higher than its box: where there is more of it, and a line that says so.
  const scrolling = (box) => {
    const quiet = !box.matches(".plot, .scroll");  // the bar and the code say it by fading alone
    const named = box.hasAttribute("tabindex");
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Scroll sideways to see all of it \u2194";
    const show = () => {
      const wide = box.scrollWidth - box.clientWidth, high = box.scrollHeight - box.clientHeight;
      const more = {
        left: wide > 1 && box.scrollLeft > 1,
        right: wide > 1 && box.scrollLeft < wide - 1,
        below: high > 1 && box.scrollTop < high - 1 && box.matches(".tall, pre"),
      };
      for (const [side, is] of Object.entries(more)) box.classList.toggle(side, is);
      box.classList.toggle("more", Object.values(more).includes(true));
      if (quiet) return;
      if (wide > 1 && !hint.isConnected) box.before(hint);
      if (wide <= 1) hint.remove();
      if (!named) {  // reachable by keyboard only where there is something to reach
        if (wide > 1) {
          box.tabIndex = 0;
          box.setAttribute("role", "region");
          box.setAttribute("aria-label", box.querySelector("svg, img")?.getAttribute("aria-label") ?? "Figure");
        } else for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
      }
    };
    show();
    box.addEventListener("scroll", show, { passive: true });
    new ResizeObserver(show).observe(box);
    box.closest("details")?.addEventListener("toggle", show);
  };

  addEventListener("DOMContentLoaded", () => {
    themeButton();
    document.querySelectorAll("button.copy").forEach(copyButton);
    document.querySelectorAll("table").forEach(sortable);
    document.querySelectorAll("table").forEach(searchable);
    document.querySelectorAll(".plot, .scroll, .bar nav, pre").forEach(scrolling);
    addEventListener("beforeprint", () => {
      document.querySelectorAll("details").forEach((block) => { block.open = true; });
    });
  });
})();
