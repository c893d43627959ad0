"""A real browser for tests: headless Chromium, driven by playwright, without a network.

    from browser import needs_browser, open_page

    @needs_browser
    def test_page(tmp_path):
        with open_page(path.as_uri()) as page: ...

Leaving the block fails on any error that the page wrote to its console.
"""
import functools, io, shutil
from contextlib import contextmanager

import numpy as np, pytest
from PIL import Image

NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost']
# 3D is drawn by the processor, so that it works on machines without a GPU; 2D is faster without.
WEBGL = ['--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']

@functools.cache
def missing():
    "What there is not, or '' where pages can be opened"
    if CHROMIUM is None: return 'no Chromium or Chrome on this machine (apt-get install chromium)'
    try: import playwright.sync_api # noqa: F401
    except ImportError: return 'needs playwright: pip install playwright'
    return ''

needs_browser = pytest.mark.skipif(bool(missing()), reason=missing() or 'a browser is there')

@contextmanager
def open_page(url, width=1100, height=700, webgl=False, timeout=60_000):
    "A page of a browser of its own; what it logs as an error is raised at the end"
    flags = FLAGS+(WEBGL if webgl else ['--disable-gpu'])
    from playwright.sync_api import sync_playwright
    errors = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            page = browser.new_page(viewport=dict(width=width, height=height))
            page.set_default_timeout(timeout)
            page.on('console', lambda m: errors.append(m.text) if m.type == 'error' else None)
            page.on('pageerror', lambda e: errors.append(str(e)))
            page.goto(url)
            yield page
        finally: browser.close()
    assert not errors, errors

def shot(page, path=None, **clip):
    "What can be seen, as RGB (H, W, 3); `path` keeps it, `clip` is x, y, width, height"
    data = page.screenshot(path=path, clip=clip or None)
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)

def steady(page, most=20, **clip):
    "What can be seen once two pictures in a row agree: nothing fades or moves any more"
    last = shot(page, **clip)
    for _ in range(most):
        page.wait_for_timeout(150)
        now = shot(page, **clip)
        if (now == last).all(): break
        last = now
    return now

def colored(image):
    "How many pixels are blue, and how many orange: the left and the right of a body"
    r, b = image[..., 0], image[..., 2]
    return int((b > r+50).sum()), int((r > b+50).sum())

def skinned(image):
    "How many pixels have the warm grey of a skin"
    r, g, b = (image[..., k].astype(int) for k in range(3))
    return int(((r > g+4) & (g > b+4) & (r < b+50) & (b > 40)).sum())

def until(page, text, timeout=60_000):
    "Wait until a JavaScript expression holds"
    return page.wait_for_function(text, timeout=timeout)
