// SPDX-License-Identifier: Apache-2.0
// gradio's sliders know the release of the pointer alone: a key that moved one is a release too.
document.addEventListener("keyup", (event) => {
  const input = event.target;
  if (!input.matches("#budget input, #opacity input")) return;
  if (event.key === "Enter") input.blur();
  else if (input.type === "range" && /^(Arrow|Page|Home|End)/.test(event.key))
    input.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
});
