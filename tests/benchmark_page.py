"""The page of a study of 10,000 trials: seconds and bytes. Run by `make benchmark-page`.

Prints how long the server takes for the page and for a refresh with ten new trials, how long a browser takes until the
figure is drawn, the size of the frozen page of 500 trials, and the server's memory before and after many refreshes.
"""

import gzip
import os
import resource
import tempfile
import time
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import browser
from benchmark_search import fill, seconds_of
from playwright.sync_api import sync_playwright

from hscc_search.config import StudyConfig
from hscc_search.report.live import application
from hscc_search.report.page import write_page
from hscc_search.study.stored_study import read_study
from hscc_search.study.study import run_study

MANY, FROZEN, REFRESHES = 10_000, 500, int(os.environ.get("REFRESHES", "1000"))


def ask(server, path, query=""):
    environment = {"PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(environment)
    return b"".join(server(environment, lambda *_: None))


def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main():
    with tempfile.TemporaryDirectory() as folder:
        config = StudyConfig.from_file("digits", storage=f"sqlite:///{folder}/studies.db", trials=20)
        run_study(config, "cpu")
        fill(config, FROZEN)
        page = Path(folder) / "front.html"
        write_page(read_study(config.storage, "digits"), page, "sqlite:///studies.db")
        print(f"frozen page of {FROZEN} trials: {page.stat().st_size / 1e6:.2f} MB", flush=True)
        fill(config, MANY)
        server = application(config.storage)
        first, _ = seconds_of(lambda: ask(server, "/front/digits"))
        again, content = seconds_of(lambda: ask(server, "/front/digits"))
        print(f"page of {MANY} trials: {first:.2f} s, again {again:.2f} s, {len(content) / 1e6:.2f} MB", flush=True)
        fill(config, MANY + 10)
        known = f"0-{MANY - 1}"
        seconds, news = seconds_of(lambda: ask(server, "/data/digits", f"known={known}"))
        small = len(gzip.compress(news))
        print(f"refresh with ten new ones: {seconds:.2f} s, {len(news) / 1e3:.0f} kB, {small / 1e3:.0f} kB compressed")
        with sync_playwright() as playwright:
            started = playwright.chromium.launch(executable_path=browser.find(), args=["--no-sandbox"])
            tab = started.new_page()
            write_page(read_study(config.storage, "digits"), page, "sqlite:///studies.db")
            drawing, _ = seconds_of(
                lambda: (tab.goto(page.as_uri()), tab.wait_for_selector("#front .scatterlayer .trace"))
            )
            print(f"drawn by a browser in {drawing:.2f} s", flush=True)
            started.close()
        before, began = memory(), time.perf_counter()
        for _ in range(REFRESHES):
            ask(server, "/data/digits", f"known={known}")
        seconds = (time.perf_counter() - began) / max(REFRESHES, 1)
        print(f"{REFRESHES} refreshes: {before:.0f} MB before, {memory():.0f} MB after, {seconds:.2f} s each")


if __name__ == "__main__":
    main()
