"""`python -m vision_jax sweep` as a user runs it: its flags, a search of real runs, and the page on it."""

import html.parser
import json
import pathlib
import re
import shlex
import signal
import sys
import time

import pytest
from conftest import REPOSITORY, Command, records
from made_up_run import EVALUATIONS, value_at

from vision_jax.commands import report as command_report
from vision_jax.commands import sweep as command_sweep

CONFIG = str(REPOSITORY / "configs" / "quickstart.py")
MADE_UP = f"{sys.executable} {REPOSITORY / 'tests' / 'made_up_run.py'}"
RATE = "optimizer.learning_rate"


class Page(html.parser.HTMLParser):
    """The texts of a page, by section, and what it refers to."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self._open: list[tuple[str, str | None]] = []
        self.within: dict[str, str] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.feed(path.read_text())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [value for name, value in attributes if name == "id"]
        self.links += [value for name, value in attributes if name in ("href", "src")]
        self.labels += [value for name, value in attributes if name == "aria-label"]
        if tag not in ("meta", "img", "link", "br"):
            self._open.append((tag, found.get("id")))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attributes if name == "id"]
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for tag, name in self._open:
            if tag == "section":
                self.within[name] = self.within.get(name, "") + f"{data}\n"


def arguments(workdir: pathlib.Path, *more: str) -> list[str]:
    return [f"--config={CONFIG}", f"--workdir={workdir}", *more]


def test_a_dry_run_shows_the_commands_and_does_nothing(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    given = (
        "--set",
        f"{RATE}=log:0.01:1:3",
        "optimizer.momentum=choice:0.8,0.9",
        "--config.batch_size=32",
        "--dry_run",
    )
    assert command_sweep.main(arguments(tmp_path / "w", *given, "--sampler=grid")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"6 trials in {tmp_path / 'w'}, of which the one with the highest val/top1 is the best."
    assert printed[3] == f"1: {RATE}=0.01, optimizer.momentum=0.9"
    assert shlex.split(printed[4]) == [
        *("python", "-m", "vision_jax.main", f"--config={CONFIG}", f"--workdir={tmp_path / 'w' / 'trials' / '0001'}"),
        *("--config.batch_size=32", f"--config.{RATE}=0.01", "--config.optimizer.momentum=0.9"),
    ]
    assert len(printed) == 1 + 2 * 6
    assert (
        command_sweep.main(arguments(tmp_path / "w", *given[:1], f"{RATE}=log:0.01:1", "--trials=12", "--dry_run")) == 0
    )
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 2 * 10 + 1
    assert printed[-1] == "The 2 others depend on the results of those before them."
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "Nothing is searched: give --set"),
        (("--set", f"{RATE}=log:0.1:1", "--metric=val/top2"), "did you mean val/top"),
        (("--set", f"{RATE}=log:0.1:1", "--trials=0"), "--trials is 0: give 1 or more."),
        (("--set", f"{RATE}=log:0.1:1", "--seed=-1"), "--seed is -1: give a number from 0"),
        (("--set", f"{RATE}=log:0.1:1", "--reduction=3"), "--reduction is 3, which is for --pruner=asha"),
        (("--set", f"{RATE}=log:0.1:1", "--min_evaluations=3"), "--min_evaluations is 3, which is for a --pruner."),
        (("--set", f"{RATE}=log:0.1:1:3", "--sampler=grid", "--trials=3"), "of a grid, all points are trials"),
        (("--set", f"{RATE}=log:0.1:1", "--sampler=grid"), "which a grid needs a number of points for"),
        (("--set", f"{RATE}=log:0.1:1", "--config.batch_siz=3"), "Did you mean"),
    ],
)
def test_wrong_flags_are_one_line(
    more: tuple[str, ...], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
    assert command_sweep.main(arguments(tmp_path / "w", *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_the_page_of_a_search(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    given = (
        "--set",
        f"{RATE}=log:0.01:1:3",
        "optimizer.nesterov=choice:True,False",
        "data.prefetch=choice:1,2",
    )
    workdir = tmp_path / "<b>&"
    assert command_sweep.main(arguments(workdir, *given, f"--program={MADE_UP}", "--sampler=grid")) == 0
    printed = capsys.readouterr().out
    assert "--config.optimizer.learning_rate=0.1 --config.optimizer.nesterov=True --config.data.prefetch=1" in printed
    assert "and 2 more, in sweep.csv" in printed
    page = Page(workdir / "report.html")
    assert list(page.within) == ["search", "trials", "importance", "curves", "fields"]
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    trials = page.within["trials"]
    assert trials.index("trials/0004") < trials.index("trials/0000") < trials.index("trials/0001")  # which diverged
    assert f"{value_at(0.1, EVALUATIONS):.2%}" in trials
    assert trials.count("At step 15 the loss is nan.\n") == 6
    assert "6 complete, 6 diverged" in page.within["search"]
    share = json.loads((workdir / "sweep.json").read_text())["importance"][RATE]
    assert f"{share:.1%}" in page.within["importance"]
    assert "mathdefault" not in page.within["fields"]
    assert any("by step, of 12 trials: from " in label for label in page.labels)

    output = tmp_path / "again.html"
    assert command_report.main([str(workdir), f"--output={output}"]) == 0
    assert re.sub("Made by.*", "", output.read_text()) == re.sub("Made by.*", "", (workdir / "report.html").read_text())
    for more, message in (
        ([str(tmp_path)], "There are 2 workdirs, and one of them is that of a search"),
        (["--step=best"], "--step is 'best', which is for runs, not for a search"),
        ([f"--output={workdir / 'sweep.json'}"], "so its name must end with .html"),
    ):
        assert command_report.main([str(workdir), *more]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_search_of_real_runs_is_cut_off_and_goes_on(command: Command, tmp_path: pathlib.Path):
    """A trial that was cut off ends with the same numbers as its command does in one go."""
    tiny = (
        "total_steps=200",
        "schedule.warmup_epochs=0",
        "eval.every_steps=100",
        "log.every_steps=50",
        "log.tensorboard=False",
    )
    flags = [f"--config.{field}" for field in tiny]
    workdir = tmp_path / "sweep"
    given = ("sweep", *arguments(workdir, *flags, "--set", f"{RATE}=choice:0.05,1e30", "--sampler=grid"))
    process = command.start(*given, module="vision_jax")
    metrics = workdir / "trials" / "0000" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or not metrics.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    saved = [int(path.name) for path in (metrics.parent / "checkpoints").iterdir()]
    assert 0 < max(saved) < 200
    printed = command(*given, module="vision_jax")
    assert "Trial 0 goes on" in printed
    assert "Trial 1 is diverged: At step " in printed
    assert f"Going on from step {max(saved)} of 200" in metrics.parent.with_suffix(".log").read_text()
    command(f"--config={CONFIG}", f"--workdir={tmp_path / 'alone'}", *flags, f"--config.{RATE}=0.05")

    def measured(workdir: pathlib.Path) -> list[dict]:
        return [{name: line[name] for name in line if name.startswith("val/")} for line in records(workdir)]

    assert measured(metrics.parent) == measured(tmp_path / "alone")
    best, diverged = json.loads((workdir / "sweep.json").read_text())["trials"]
    assert best["value"] == records(tmp_path / "alone")[-1]["val/top1"]
    assert best["step"] == 200
    assert diverged["ending"] == "diverged"
