// Upload an image that is chosen, pasted, or dropped anywhere on the page; the page receives its token.
(() => {
  const chooser = () => document.getElementById("sl-chooser");
  const box = () => document.getElementById("sl-query");

  async function upload(file) {
    const most = Number(chooser().dataset.most);
    if (file.size > most) {
      emitEvent("sl_image", { problem: `${file.name}: larger than ${Math.floor(most / 2 ** 20)} MiB; supply a smaller image` });
      return;
    }
    emitEvent("sl_image", { coming: file.name });
    try {
      const answer = await fetch(`/search/pictures?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
      emitEvent("sl_image", answer.ok ? await answer.json() : { problem: `${file.name}: ${await answer.text()}` });
    } catch (error) {
      emitEvent("sl_image", { problem: `${file.name} could not be sent (${error.message}); is the console still running?` });
    }
  }

  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let inside = 0;
  const mark = () => document.body.classList.toggle("sl-dropping", inside > 0);

  document.addEventListener("change", (event) => {
    if (event.target !== chooser() || !event.target.files.length) return;
    upload(event.target.files[0]);
    event.target.value = "";  // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return;
    event.preventDefault();
    upload(file);
  });
  document.addEventListener("dragenter", (event) => { if (hasFiles(event)) { inside++; mark(); } });
  document.addEventListener("dragleave", (event) => { if (hasFiles(event)) { inside--; mark(); } });
  document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    inside = 0;
    mark();
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable=true]");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    box().focus();
    box().select();
  });
  window.addEventListener("popstate", () => emitEvent("sl_went", location.search));
})();
