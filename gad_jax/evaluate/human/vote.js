// A key clicks the button that names it; one vote per page, however long the key is held.
let sent = false;
document.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
window.addEventListener("pageshow", () => { sent = false; });
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  for (const element of document.querySelectorAll("[data-key]")) {
    if (element.dataset.key.split(" ").includes(event.key.length === 1 ? event.key.toLowerCase() : event.key)) {
      event.preventDefault();
      element.click();
    }
  }
});
