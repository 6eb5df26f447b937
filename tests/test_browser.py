"""A learner's first minute, in a real browser: JupyterLab starts, a lesson runs from the menu, its controls move, nothing is asked of the network.

Needs playwright and a Chromium (on Debian: ``apt-get install chromium``). Skipped without one, but not under CI.
One lesson is opened, since each takes a minute; ``make test-browser LESSONS="vae nerf"`` opens those that are named, ``make test-browser`` all.
Screenshots of what the controls did are kept where COURSE_SCREENSHOTS says.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT

from course_utils import curriculum
from course_utils.authoring import badges, notebooks
from course_utils.errors import under_ci

LIGHT = "linear_blend_skinning"  # light, with a slider and a mesh to turn
BUILT = [name for name, lesson in curriculum.lessons().items() if (ROOT / lesson.path).exists()]
CHOSEN = {"": [LIGHT], "all": BUILT}.get(os.environ.get("COURSE_BROWSER", ""), os.environ.get("COURSE_BROWSER", "").split())
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SENTINEL = "EVERY CELL HAS RUN"
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},  # every cell stays in the page
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
}


def chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def put(name, folder):
    """A copy of the lesson with one more cell that says when all is done."""
    nb = notebooks.read(ROOT / curriculum.lessons()[name].path)
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    last = {"cell_type": "code", "id": "sentinel", "metadata": {}, "outputs": [], "execution_count": None}
    nb["cells"].append({**last, "source": 'print(" ".join(["EVERY", "CELL", "HAS", "RUN"]))'})
    (folder / f"{name}.ipynb").write_text(json.dumps(nb), encoding="utf8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab of its own, with empty settings, serving the chosen lessons."""
    home = tmp_path_factory.mktemp("jupyter")
    served = home / "served"
    served.mkdir()
    for name in CHOSEN:
        put(name, served)
    for name, content in SETTINGS.items():
        file = home / "settings" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    own = {n: str(home / n.lower()) for n in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_WORKSPACES_DIR")}
    # One thread: two of them wait for each other where the machine is busy.
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "COURSE_PROFILE": "quick", "OMP_NUM_THREADS": "1"}
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own  # the kernel draws inline, as a learner's does
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", "--ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={served}", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", "--LabApp.news_url=None"]
    with open(home / "log.txt", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=served)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=2).read()
                break
            except OSError:
                assert server.poll() is None, (home / "log.txt").read_text()
                time.sleep(0.25)
        else:
            pytest.fail("JupyterLab did not start: " + (home / "log.txt").read_text())
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(params=CHOSEN)
def page(request, lab):
    """A fresh browser with a lesson open in it."""
    sync = pytest.importorskip("playwright.sync_api")
    where = chromium()
    if where is None:
        (pytest.fail if under_ci() else pytest.skip)("no Chromium here: install one (`apt-get install chromium`)")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=where, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1300, "height": 1000})
        tab.asked, tab.lesson = [], request.param
        tab.on("request", lambda r: tab.asked.append(r.url))
        tab.goto(f"{lab}/lab/tree/{request.param}.ipynb?reset", timeout=120_000)
        tab.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        tab.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=120_000)
        yield tab
        browser.close()
    for kernel in json.load(urllib.request.urlopen(f"{lab}/api/kernels")):  # its memory is for the next lesson
        urllib.request.urlopen(urllib.request.Request(f"{lab}/api/kernels/{kernel['id']}", method="DELETE"))


def run_all(page):
    """Run → Run All Cells. The menu is there before the notebook listens to it, so look whether the cells are waiting, and choose again if not."""
    for _ in range(4):
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        for _ in range(60):  # a busy machine takes its time, and a second choice would run everything twice
            page.wait_for_timeout(250)
            if page.locator(".jp-CodeCell .jp-InputPrompt").last.inner_text() != "[ ]:":
                return
    pytest.fail("the menu did not start the notebook")


def wait_for(page, true, seconds, otherwise):
    until = time.time() + seconds
    while not true():
        assert time.time() < until, otherwise() if callable(otherwise) else otherwise
        page.wait_for_timeout(300)


def panels(page):
    """Every control panel of the page: the outermost box with a picture in it."""
    boxes = page.locator(".jp-OutputArea-output > .widget-vbox, .jp-OutputArea-output :not(.widget-box) > .widget-vbox", has=page.locator("img.widget-image"))
    return [boxes.nth(i) for i in range(boxes.count())]


def move(page, panel, buttons=None):
    """Every slider and list of a panel, and ``buttons`` that write into it, one after the other: the picture below must change. True if there was any."""
    picture, words = panel.locator("img.widget-image"), panel.locator(".widget-html").last

    def shown():
        """The picture, once it stands still and is not an empty place."""
        last = None
        until = time.time() + 120
        while time.time() < until:
            now = picture.screenshot() if picture.evaluate("i => i.complete && i.naturalWidth > 0") else None
            if now and now == last and not page.locator(".jp-Notebook-ExecutionIndicator[data-status=busy]").count():
                return now
            last = now
            page.wait_for_timeout(400)
        pytest.fail(f"the picture of {page.lesson} never stands still")

    def changes(what, act):
        before = shown()
        act()
        wait_for(page, lambda: shown() != before, 120, lambda: f"{what} moved and the picture did not change: {words.inner_text()!r}")
        assert "Error" not in words.inner_text(), f"{what}: {words.inner_text()}"

    def press(handle):
        handle.focus()
        low = float(handle.get_attribute("aria-valuenow")) < float(handle.get_attribute("aria-valuemax"))
        for _ in range(3):
            page.keyboard.press("ArrowRight" if low else "ArrowLeft")

    handles, lists = panel.locator(".widget-slider .noUi-handle"), panel.locator("select")
    if buttons and buttons.count():
        changes("the pad", lambda: [buttons.nth(k).click() for k in (0, 8, 40)])
    for i in range(lists.count()):
        changes(f"list {i}", lambda i=i: lists.nth(i).select_option(index=lists.nth(i).locator("option").count() - 1))
    for i in range(handles.count()):
        changes(f"slider {i}", lambda i=i: press(handles.nth(i)))
    return bool(handles.count() + lists.count())


@pytest.mark.browser
@pytest.mark.slow
def test_a_lesson_in_a_real_browser(page, lab, tmp_path):
    run_all(page)
    done = page.locator(".jp-OutputArea-output", has_text=SENTINEL)
    stopped = page.locator(
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-OutputArea-output[data-mime-type$='stderr']", has_text="Error"
    )

    def ended():
        assert not stopped.count(), stopped.first.inner_text()
        return done.count()

    wait_for(page, ended, 600, lambda: f"the last cell has not run; the prompts read {page.locator('.jp-CodeCell .jp-InputPrompt').all_inner_texts()}")

    # Every control, by keyboard or mouse: the picture below it changes.
    page.locator(".widget-slider .noUi-handle").first.wait_for(timeout=30_000)
    shots = Path(os.environ.get("COURSE_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    found = panels(page)
    pad = page.locator(".jp-OutputArea-output button.widget-button")  # of 2.5: strokes for its last panel
    assert found and all([move(page, panel, pad if panel is found[-1] else None) for panel in found])
    for i, panel in enumerate(found):
        panel.screenshot(path=shots / f"{page.lesson}_{i}.png")

    # The 3D figure shows its still picture, and becomes interactive under the mouse.
    figure = page.locator(".jp-RenderedPlotly").first
    if page.lesson == LIGHT or figure.count():
        figure.scroll_into_view_if_needed()
        figure.locator("img.plot-img").dispatch_event("mouseenter")
        page.wait_for_selector(".js-plotly-plot canvas", timeout=30_000)

    # Nobody else was asked for anything, but for the picture of the Colab badge in the title.
    outside = [u for u in page.asked if u not in (badges.READ, badges.PRACTISE) and not u.startswith((lab, lab.replace("http", "ws"), "data:", "blob:"))]
    assert len(page.asked) > 20 and outside == []
