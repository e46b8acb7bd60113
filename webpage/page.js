// Run once when the page is drawn: pasted pictures, and names for what Gradio leaves without one.
() => {
  document.documentElement.lang = "en";

  const shown = (element) => element.offsetParent !== null;
  const fileName = (address) => decodeURIComponent(new URL(address, location).pathname.split("/").pop());

  // A picture pasted anywhere goes to the first free place for pictures of the tab that is shown, or to its first place.
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    const panel = [...document.querySelectorAll("[role=tabpanel]")].find(shown);
    const places = [...(panel?.querySelectorAll(".picture") ?? [])];
    const place = places.find((each) => !each.querySelector("img")) ?? places[0];
    const input = place?.querySelector("input[type=file]");
    if (!file || !input) return;
    event.preventDefault();
    const transfer = new DataTransfer();
    transfer.items.add(file);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // Screen readers: each rule gives a name, or a role, to what has none or a wrong one.
  const rules = [
    [".gallery-item:has(img[src], video[src]):not([aria-label])", (each) => {
      each.setAttribute("aria-label", `Try ${fileName(each.querySelector("img, video").src)}`);
    }],
    [".tr-body img:not([alt]), .tr-body img[alt='']", (each) => (each.alt = fileName(each.src))],
    ["button[aria-dropeffect][aria-label]", (each) => each.removeAttribute("aria-label")],
    [".thumbnail-item[aria-label]", (each) => each.removeAttribute("aria-label")],
    [".thumbnail-item img", (each) => (each.alt = fileName(each.src))],
    ["div[aria-label='Empty value']:not([role])", (each) => each.setAttribute("role", "img")],
    [".overflow-menu > button:not([aria-label])", (each) => each.setAttribute("aria-label", "More tabs")],
    [".seconds:not([aria-live])", (each) => each.setAttribute("aria-live", "polite")],
  ];
  const name = () => rules.forEach(([selector, change]) => document.querySelectorAll(selector).forEach(change));
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}
