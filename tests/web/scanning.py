"""What a camera reads from the page: a QR code is decoded from a picture of it."""

import base64
from pathlib import Path

import pytest
from playwright.sync_api import Locator

DECODER = Path(__file__).parent / "node_modules" / "jsqr" / "dist" / "jsQR.js"

_DECODE = """async (picture) => {
  const bytes = Uint8Array.from(atob(picture), (one) => one.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const { data } = canvas.getImageData(0, 0, image.width, image.height);
  return window.jsQR(data, image.width, image.height)?.data ?? null;
}"""


def scanned(code: Locator) -> str | None:
    """Return the text of a QR code as it is shown; None if it cannot be read."""
    if not DECODER.exists():
        pytest.skip("jsqr is not there: run `bin/setup web`")
    code.page.evaluate(f"(() => {{ const self = window; {DECODER.read_text()} }})()")
    picture = base64.b64encode(code.screenshot()).decode()
    text: str | None = code.page.evaluate(_DECODE, picture)
    return text
