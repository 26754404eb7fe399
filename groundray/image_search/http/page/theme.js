// Light or dark colours: those of the system, unless the button in the header has chosen others, which is remembered.
// A plain script, so that the first paint has the right ones. A change is told by the event "theme" of the window.

(() => {
  const KEY = "groundray-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const followed = () => (system.matches ? "dark" : "light");
  let chosen = null; // "light" or "dark"; null follows the system
  try {
    chosen = localStorage.getItem(KEY);
  } catch {
    // a browser that keeps nothing: the choice holds until the page is left
  }

  const apply = () => {
    const theme = ["light", "dark"].includes(chosen) ? chosen : followed();
    document.documentElement.dataset.theme = theme;
    document.getElementById("theme")?.setAttribute("aria-pressed", String(theme === "dark"));
    dispatchEvent(new Event("theme"));
  };
  const choose = (theme) => {
    chosen = theme === followed() ? null : theme; // back to the system's: follow it again
    try {
      if (chosen) localStorage.setItem(KEY, chosen);
      else localStorage.removeItem(KEY);
    } catch {
      // as above
    }
    apply();
  };

  apply();
  system.addEventListener("change", apply);
  addEventListener("storage", ({ key, newValue }) => {
    if (key !== KEY) return;
    chosen = newValue;
    apply();
  });
  addEventListener("DOMContentLoaded", () => {
    apply();
    document
      .getElementById("theme")
      .addEventListener("click", () =>
        choose(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
      );
  });
})();
