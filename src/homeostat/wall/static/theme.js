// Before anything is painted: the theme that the viewer chose, if any.
(() => {
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch { /* storage is closed: the system's theme holds */ }
})();
