"""A learner's first minute, in a real browser: JupyterLab starts, a lesson runs from the menu, its slider moves, nothing is asked of the network.

Needs playwright and a Chromium (on Debian: ``apt-get install chromium``). Skipped without one, but not under CI.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT

from course_utils import badges, curriculum, notebooks
from course_utils.errors import under_ci

CHOSEN = "linear_blend_skinning"  # light, with a slider and a mesh to turn
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


def lesson_or_stand_in(folder):
    """A copy of the lesson with one more cell that says when all is done; a small stand-in while the lesson is not there."""
    path = ROOT / curriculum.lessons()[CHOSEN].path
    if path.exists():
        nb = notebooks.read(path)
    else:
        code = [
            "import numpy as np\nimport matplotlib.pyplot as plt\nfrom course_utils import show\nshow.use_style()",
            "def draw(angle=0.0):\n    x = np.linspace(0, 6, 50)\n    plt.plot(x, np.sin(x + angle))\nshow.play(draw, angle=(0.0, 3.0, 0.5))",
            "show.mesh(np.eye(4, 3), np.array([[0, 1, 2], [1, 2, 3]]))",
        ]
        nb = {"cells": [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": c} for i, c in enumerate(code)]}
        nb |= {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    last = {"cell_type": "code", "id": "sentinel", "metadata": {}, "outputs": [], "execution_count": None}
    nb["cells"].append({**last, "source": 'print(" ".join(["EVERY", "CELL", "HAS", "RUN"]))'})
    (folder / "lesson.ipynb").write_text(json.dumps(nb), encoding="utf8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab of its own, with empty settings, serving one notebook."""
    home = tmp_path_factory.mktemp("jupyter")
    served = home / "served"
    served.mkdir()
    lesson_or_stand_in(served)
    for name, content in SETTINGS.items():
        file = home / "settings" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    own = {n: str(home / n.lower()) for n in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_WORKSPACES_DIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "COURSE_PROFILE": "quick", "OMP_NUM_THREADS": "2"}
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own  # the kernel draws inline, as a learner's does
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", "--ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={served}", "--IdentityProvider.token=", "--LabApp.news_url=None"]
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


@pytest.fixture(scope="module")
def page(lab):
    sync = pytest.importorskip("playwright.sync_api")
    where = chromium()
    if where is None:
        (pytest.fail if under_ci() else pytest.skip)("no Chromium here: install one (`apt-get install chromium`)")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=where, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1300, "height": 1000})
        tab.asked = []
        tab.on("request", lambda r: tab.asked.append(r.url))
        tab.goto(f"{lab}/lab/tree/lesson.ipynb?reset", timeout=120_000)
        tab.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        tab.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=120_000)
        yield tab
        browser.close()


def run_all(page):
    """Run → Run All Cells. The menu is there before the notebook listens to it, so look whether the cells are waiting, and choose again if not."""
    for _ in range(10):
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        page.wait_for_timeout(3000)
        if page.locator(".jp-CodeCell .jp-InputPrompt").last.inner_text() != "[ ]:":
            return
    pytest.fail("the menu did not start the notebook")


@pytest.mark.browser
@pytest.mark.slow
def test_a_lesson_in_a_real_browser(page, lab):
    run_all(page)
    done = page.locator(".jp-OutputArea-output", has_text=SENTINEL)
    stopped = page.locator(
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-OutputArea-output[data-mime-type$='stderr']", has_text="Error"
    )
    until = time.time() + 300
    while not done.count() and time.time() < until:
        assert not stopped.count(), stopped.first.inner_text()
        page.wait_for_timeout(500)
    assert done.count(), f"the last cell has not run; the prompts read {page.locator('.jp-CodeCell .jp-InputPrompt').all_inner_texts()}"

    # The slider, by keyboard: the picture below it changes.
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.wait_for(timeout=30_000)
    box = page.locator(".widget-vbox", has=page.locator(".widget-slider")).first
    picture = box.locator("img.widget-image")
    before = picture.screenshot()
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    until = time.time() + 60
    while picture.screenshot() == before and time.time() < until:
        page.wait_for_timeout(300)
    assert picture.screenshot() != before, "the slider moved and the picture did not change"

    # The 3D figure shows its still picture, and becomes interactive under the mouse.
    figure = page.locator(".jp-RenderedPlotly").first
    figure.scroll_into_view_if_needed()
    figure.locator("img.plot-img").dispatch_event("mouseenter")
    page.wait_for_selector(".js-plotly-plot canvas", timeout=30_000)

    # Nobody else was asked for anything, but for the picture of the Colab badge in the title.
    outside = [u for u in page.asked if u != badges.BADGE and not u.startswith((lab, lab.replace("http", "ws"), "data:", "blob:"))]
    assert len(page.asked) > 20 and outside == []
