"""A run that is killed anywhere, and started again by the same command, is the run that nobody disturbed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from src.cli.train import fit
from src.config import Config, load_config
from src.lora.adapter_io import CONFIG_FILE, WEIGHTS_FILE
from src.train.callbacks import Callback, StepReport
from src.train.trainer import Trainer
from tests.train.processes import end_as_a_command
from tests.train.steps import read_steps

SETTINGS = (
    "training.save_every.steps=1", "training.max_epochs=2", "training.monitor_clips=0", "training.domain_gate=false",
    "lora.dropout=0.1", "training.learning_rate=1e-2",
)  # fmt: skip
STEPS = 6
HOUSE = Path(__file__).parents[2]


def begin(work: Callable[[], object], output: Path) -> int:
    """Do some work in a process of its own, which need not import anything again; returns its id.

    It exits as a command would, and writes to ``output``.
    """
    child = os.fork()
    if not child:
        os.setsid()  # so that its own children can be found when it is gone
        end_as_a_command(work, output)
    return child


def end(child: int) -> int:
    """Wait for a process; returns its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_no_orphans(child: int) -> None:
    """The processes that loaded data for one that is gone end too, within the seconds in which they look for it."""
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"processes of the group {child} are left")


class Runs:
    """Starts the tiny run in a folder again and again."""

    def __init__(self, tiny_yaml: Path, folder: Path) -> None:
        self.yaml, self.folder = tiny_yaml, folder
        self.output = folder.with_suffix(".txt")

    def train(self, *settings: str) -> None:
        """What ``train.py --resume auto`` does."""
        fit(load_config(self.yaml, [f"output_dir={self.folder}", *SETTINGS, *settings]), resume="auto")

    def begin(self, before: Callable[[], object] = lambda: None, *settings: str) -> int:
        def work() -> None:
            before()
            self.train(*settings)

        return begin(work, self.output)

    def finish(self) -> Path:
        """Let the run end undisturbed; returns its folder."""
        status = end(self.begin())
        assert status == 0, self.output.read_text()
        return self.folder

    def kill_after(self, seconds: float, workers: int) -> int | None:
        """Start the run and kill it so much later; returns which process was killed, None if it was done before."""
        child = self.begin(lambda: None, f"training.num_workers={workers}")
        moment = time.monotonic() + seconds
        while time.monotonic() < moment:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        status = end(child)
        assert status in (0, -signal.SIGKILL), self.output.read_text()
        return child if status else None


@pytest.fixture(scope="module")
def whole(tiny_yaml, tmp_path_factory) -> tuple[Path, float]:
    """The folder of a run that nobody disturbed, and how many seconds it took."""
    runs = Runs(tiny_yaml, tmp_path_factory.mktemp("whole") / "run")
    began = time.monotonic()
    return runs.finish(), time.monotonic() - began


@pytest.fixture
def runs(tiny_yaml, tmp_path) -> Runs:
    return Runs(tiny_yaml, tmp_path / "run")


def assert_same_run(found: Path, expected: Path) -> None:
    """Steps, weights, all other state of checkpoints and what is reported are the same, bit for bit."""
    assert read_steps(found) == read_steps(expected)
    assert [line["step"] for line in read_steps(found)] == list(range(1, STEPS + 1))
    assert (found / "metrics.json").read_text() == (expected / "metrics.json").read_text()
    for name in ("last.pt", "best.pt"):
        contents = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (found, expected)]
        for content in contents:
            content["progress"]["run_name"] = content["config"]["output_dir"] = ""  # the time of the start; the folder
            content["config"]["training"]["num_workers"] = 0  # of the last start
        assert_equal(*contents)
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        assert (found / "adapter" / file).read_bytes() == (expected / "adapter" / file).read_bytes()
    assert not list(found.rglob("*.tmp"))


def assert_equal(found: object, expected: object, place: str = "") -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict), place
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_equal(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), place
        assert len(found) == len(expected), place
        for i, value in enumerate(expected):
            assert_equal(found[i], value, f"{place}.{i}")
    elif isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), place
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place


def kill_often(begin_run: Callable[[], Runs], times: int, whole: tuple[Path, float], rng: random.Random) -> None:
    """Kill runs so often at random moments, every second time with a process that loads their data.

    A run that is done, whether a kill came too late or the last kill was dealt, is compared with the undisturbed one.
    """
    expected, seconds = whole
    killed: list[int] = []
    runs = begin_run()
    while len(killed) < times:
        child = runs.kill_after(rng.uniform(0, 0.7 * seconds), workers=len(killed) % 2)
        if child is None:
            assert_same_run(runs.folder, expected)
            runs = begin_run()
        else:
            killed.append(child)
    assert_same_run(runs.finish(), expected)
    for child in killed:
        assert_no_orphans(child)


@pytest.fixture
def begin_run(tiny_yaml, tmp_path) -> Callable[[], Runs]:
    """A run in a new folder."""
    numbers = itertools.count()
    return lambda: Runs(tiny_yaml, tmp_path / f"run{next(numbers)}")


def test_ten_kills_at_random_moments_change_nothing(begin_run, whole):
    kill_often(begin_run, 10, whole, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_two_hundred_kills_at_random_moments_change_nothing(begin_run, whole, part):
    """Twenty kills in each of ten parts, at other moments in each."""
    kill_often(begin_run, 20, whole, random.Random(part + 1))


def kill_in(module: object, name: str, matches: Callable[..., bool], after: bool) -> None:
    """Make this process kill itself before or after the first call of a function that ``matches``."""
    original = getattr(module, name)

    def deadly(*arguments, **options):
        if not matches(*arguments):
            return original(*arguments, **options)
        if after:
            original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(module, name, deadly)


def torn_write(content: object, file) -> None:
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def renamed(to: str, **options: bool) -> Callable[[], None]:
    return partial(kill_in, os, "replace", lambda source, target: Path(target).name == to, **options)


SAVES = {
    "writing": lambda: setattr(torch, "save", torn_write),
    "after the renamings": renamed("last.pt", after=True),
    "before the older file is kept": renamed("previous.pt", after=False),
    "between the two renamings": renamed("previous.pt", after=True),
    "with the best, before the last": renamed("best.pt", after=True),
    "with half of the adapter": renamed(WEIGHTS_FILE, after=True),
}


def test_kills_within_saves_change_nothing(runs, whole):
    """One run that is killed at each of these moments in turn."""
    for moment, prepare in SAVES.items():
        assert end(runs.begin(prepare)) == -signal.SIGKILL, f"{moment}: {runs.output.read_text()}"
    assert_same_run(runs.finish(), whole[0])


def wait_for_a_step(folder: Path) -> None:
    while not (folder / "steps.jsonl").exists() or not (folder / "steps.jsonl").read_text():
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "send", "workers"),
    [(signal.SIGTERM, os.kill, 2), (signal.SIGINT, os.killpg, 1)],  # a terminal sends Ctrl-C to the loaders as well
    ids=["SIGTERM to the trainer", "SIGINT to all its processes"],
)
def test_a_signal_finishes_the_step_and_saves_it(runs, whole, number, send, workers):
    """Here the checkpoint is not written every step: it is there because of the signal."""
    child = runs.begin(lambda: None, "training.save_every.steps=null", f"training.num_workers={workers}")
    wait_for_a_step(runs.folder)
    send(child, number)
    assert end(child) == 128 + number
    saved = torch.load(runs.folder / "checkpoints/last.pt", weights_only=True)["progress"]["step"]
    assert saved == len(read_steps(runs.folder)) < STEPS
    assert runs.output.read_text().count(f"{number.name}: finishing the step") == 1
    assert "Traceback" not in runs.output.read_text()
    assert f"stopped after step {saved}" in (runs.folder / "logs/training.log").read_text()
    assert_no_orphans(child)
    assert_same_run(runs.finish(), whole[0])


def test_ctrl_c_on_the_command_leaves_a_message_and_no_process(tiny_yaml, tmp_path):
    """The real command in a terminal's manner: in a process group of its own, all of which gets the signal."""
    folder = tmp_path / "run"
    settings = (f"output_dir={folder}", *SETTINGS, "training.max_epochs=500", "training.num_workers=2")
    words = ["train.py", "--config", str(tiny_yaml), *(word for setting in settings for word in ("--set", setting))]
    output = tmp_path / "output.txt"
    with open(output, "w") as file:
        run = subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, cwd=HOUSE, start_new_session=True)
    wait_for_a_step(folder)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait() == 130
    with pytest.raises(ProcessLookupError):  # the command ends its loaders before it ends
        os.killpg(run.pid, 0)
    text, saved = output.read_text(), len(read_steps(folder))
    assert "Traceback" not in text
    assert text.splitlines()[-1] == (
        f"stopped by SIGINT after step {saved}, which {folder / 'checkpoints/last.pt'} holds; "
        f"go on with: {shlex.join(['python', *words, '--resume', 'auto'])}"
    )


def test_a_loader_that_is_killed_is_told_and_costs_nothing(runs, whole):
    """As by a system that is out of memory."""

    class KillLoader(Callback):
        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            (loader,) = multiprocessing.active_children()
            os.kill(loader.pid, signal.SIGKILL)

    def train(config: Config) -> None:
        Trainer.from_config(config, callbacks=[KillLoader()]).fit()

    settings = (f"output_dir={runs.folder}", *SETTINGS, "training.num_workers=1")
    child = begin(lambda: train(load_config(runs.yaml, list(settings))), runs.output)
    assert end(child) == 2
    assert "a process that loads data was killed" in runs.output.read_text()
    assert_same_run(runs.finish(), whole[0])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(runs, whole):
    for _ in range(2):
        assert end(runs.begin(SAVES["after the renamings"])) == -signal.SIGKILL
    last = runs.folder / "checkpoints/last.pt"
    content = bytearray(last.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 300)  # beyond one tensor's padding
    content[middle] = bytes(byte ^ 1 for byte in content[middle])
    last.write_bytes(content)
    assert_same_run(runs.finish(), whole[0])
    assert f"passed over a damaged checkpoint: {last}: damaged" in runs.output.read_text()


def test_a_full_disk_is_told_and_costs_nothing(runs, whole):
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    assert end(runs.begin(SAVES["after the renamings"])) == -signal.SIGKILL
    last = runs.folder / "checkpoints/last.pt"
    before = last.read_bytes()
    assert end(runs.begin(full)) == 2
    (line,) = [line for line in runs.output.read_text().splitlines() if line.startswith("error: ")]
    assert line == f"error: {last}: cannot be written: File too large"
    assert last.read_bytes() == before
    assert not list(runs.folder.rglob("*.tmp"))
    assert_same_run(runs.finish(), whole[0])


def test_where_there_is_no_checkpoint_auto_begins_and_says_so(whole):
    text = (whole[0] / "logs/training.log").read_text()
    assert f"there is no checkpoint in {whole[0] / 'checkpoints'}, so the run starts from the beginning" in text
