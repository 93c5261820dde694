"""A run as a person sees it: a running TensorBoard and a report, in a real browser without a window.

Needs Chromium (``apt-get install chromium``) and is skipped without. To look at what was checked, give the test a
folder: ``python -m pytest -m slow tests/browser --basetemp seen``; the screenshots are below it.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ika_lightning.cli import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two epochs, with all the time for pictures that there is, and its report."""
    folder = tmp_path_factory.mktemp("trained")
    config = Path(__file__).parents[2] / "configs" / "regression" / "co2.yaml"
    with chdir(folder):
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        main(["fit", "--config", str(config), "--trainer.max_epochs", "20", "--pictures", "1.0", *quiet])
        main(["report", "--ckpt_path", "runs/co2/version_0/checkpoints/best.ckpt", *quiet[:2]])
    return folder


@pytest.fixture
def address(folder: Path):
    """A TensorBoard that has read the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "runs"), "--port", str(port)]
    server = subprocess.Popen([*command, "--load_fast=false"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/images/tags", timeout=30) as answer:
                    if "co2/version_0" in json.load(answer):
                        break
            except OSError:
                assert server.poll() is None, "TensorBoard did not start"
        else:
            pytest.fail("TensorBoard has not read the run")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def browse(address: str, profile: Path, *what: str, size: str = "1500,3000") -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
        f"--window-size={size}", "--virtual-time-budget=30000", *what, address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ}).stdout


def brightest_of_viridis(screenshot: Path) -> int:
    """Count pixels of the yellow that only a drawn map has."""
    pixels = np.asarray(Image.open(screenshot).convert("RGB")).astype(int)
    return int((np.abs(pixels - (253, 231, 37)).sum(-1) < 12).sum())


def test_images_and_scalars_of_the_run_are_on_the_page(folder: Path, address: str, tmp_path: Path) -> None:
    run = EventAccumulator(str(folder / "runs" / "co2" / "version_0")).Reload().Tags()
    assert len(run["images"]) == 11 and "gradient/norm" in run["scalars"]
    images, titles, tags = set(), set(), [*run["images"], *run["scalars"]]
    for start in range(0, len(tags), 6):  # TensorBoard shows 12 cards a page
        wanted = tags[start : start + 6]
        page = f"{address}/?tagFilter={urllib.parse.quote('^(' + '|'.join(wanted) + ')$')}#timeseries"
        for _ in range(5):  # the browser's clock runs faster than a busy server
            dom = browse(page, tmp_path / "profile", "--dump-dom", size="1500,4000")
            shown = [
                json.loads(base64.urlsafe_b64decode(f"{name}==")) for name in re.findall(r"imageId=([\w=-]+)", dom)
            ]
            images |= {tag for _, _, _, tag, *_ in shown}
            titles |= set(re.findall(r'title="([^"]+)"', dom))
            if set(wanted) <= images | titles:
                break
    assert images == set(run["images"])
    assert set(run["scalars"]) <= titles
    seen = tmp_path / "similarity.png"
    for _ in range(5):
        browse(f"{address}/?tagFilter=similarity#timeseries", tmp_path / "profile", f"--screenshot={seen}")
        if brightest_of_viridis(seen) > 300:
            break
    assert brightest_of_viridis(seen) > 300


def test_the_table_of_runs_has_the_score(folder: Path, address: str, tmp_path: Path) -> None:
    browse(f"{address}/#hparams", tmp_path / "profile", f"--screenshot={tmp_path / 'hparams.png'}", size="1500,1400")
    request = urllib.request.Request(
        f"{address}/data/plugin/hparams/session_groups",
        data=json.dumps({"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING"],
                         "colParams": [{"hparam": "main/learning_rate"}]}).encode(),
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        (group,) = json.load(answer)["sessionGroups"]
    (score,) = [value["value"] for value in group["metricValues"] if value["name"]["tag"] == "hp_metric"]
    logged = EventAccumulator(str(folder / "runs" / "co2" / "version_0")).Reload().Scalars("val/loss")
    assert score == pytest.approx(min(event.value for event in logged))
    assert (tmp_path / "hparams.png").stat().st_size > 10_000


def test_the_report_is_a_page_of_its_own(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "alone.html"  # without the pictures beside it
    page.write_bytes((folder / "report" / "report.html").read_bytes())
    dom = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")
    pictures = sorted((folder / "report").glob("*.png"))
    assert dom.count("<img ") == len(pictures) == 11
    browse(page.as_uri(), tmp_path / "profile", f"--screenshot={tmp_path / 'report.png'}", size="1100,6000")
    assert brightest_of_viridis(tmp_path / "report.png") > 1000
