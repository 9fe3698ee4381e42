"""Headless Chromium, driven over DevTools' pipe with nothing but the standard library."""

import base64
import contextlib
import json
import os
import select
import subprocess
import time

# TensorBoard's pages are trees of shadow roots, which document.body.innerText does not enter.
TEXT = """(() => {
  const texts = [];
  const walk = node => {
    if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) texts.push(node.textContent.trim());
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return;
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  if (document.body) walk(document.body);
  return texts.join('\\n');
})()"""


class Page:
    """The one tab of a browser.

    Args:
        binary: Chromium's.
        profile: Empty directory for what it writes.
        height: Of the window, pixels.
    """

    def __init__(self, binary, profile, height=1400):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # DevTools reads descriptor 3 and writes 4; the shell moves ours there.
        command = [
            *(binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size=1500,{height}", "about:blank"),
        ]
        moved = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._id, self._session = b"", 0, None
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def call(self, method, **params):
        """Send one DevTools command and wait for its answer."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(300)
            if answer.get("id") == self._id:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _receive(self, seconds):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], seconds)
            chunk = os.read(self._read, 1 << 20) if ready else b""
            assert chunk, f"the browser said nothing for {seconds} s, or has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url):
        """Go to a page."""
        self.call("Page.navigate", url="about:blank")  # a change of the fragment alone would not load it anew
        self.call("Page.navigate", url=url)

    def run(self, script):
        """Value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text_with(self, *wanted, seconds=300):
        """The page's whole text, once everything wanted is in it.

        Raises:
            AssertionError: it does not come in time.
        """
        end = time.monotonic() + seconds
        while True:
            text = self.run(TEXT)
            missing = [part for part in wanted if part not in text]
            if not missing:
                return text
            assert time.monotonic() < end, f"{missing} not in the page:\n{text}"
            time.sleep(0.3)

    def screenshot(self, path):
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        """End the browser."""
        with contextlib.suppress(AssertionError, OSError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
