"""Signals wait for a good moment; a second SIGINT does not."""

from __future__ import annotations

import signal
import threading

import pytest

from src.core.errors import Stopped
from src.core.shutdown import SIGNALS, GracefulShutdown
from src.train.resume import resume_command


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_check(number, capfd):
    outside = signal.signal(number, signal.default_int_handler)  # where the tests run it may be ignored
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, GracefulShutdown() as stops:
        signal.raise_signal(number)
        reached = True
        stops.check()
    assert reached
    assert caught.value.status == 128 + number
    assert f"{number.name}: finishing the step" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    signal.signal(number, outside)


@pytest.fixture
def pythons_own_handler():
    """Of SIGINT, which is ignored where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_aborts_at_once(pythons_own_handler):
    with pytest.raises(KeyboardInterrupt), GracefulShutdown():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_what_is_interruptible_is_interrupted():
    with pytest.raises(Stopped), GracefulShutdown() as stops, stops.interruptible():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal waited")


def test_a_signal_that_has_come_before_stops_what_is_interruptible():
    with GracefulShutdown() as stops:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), stops.interruptible():
            pytest.fail("it began")


def test_in_another_thread_signals_are_left_alone():
    seen = []

    def work() -> None:
        with GracefulShutdown():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(
    "words", [["--resume", "a.pt"], ["--resume=a.pt"], [], ["--resume", "auto"]], ids=lambda words: " ".join(words)
)
def test_the_command_to_go_on_is_the_same_with_auto(words):
    argv = ["train.py", "--config", "my run.yaml", *words, "--set", "lora.rank=2"]
    assert resume_command(argv) == "python train.py --config 'my run.yaml' --set lora.rank=2 --resume auto"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="only POSIX has it")
def test_a_terminal_that_is_gone_stops_a_run_unless_nohup_says_otherwise():
    assert {signal.SIGHUP, signal.SIGUSR1} <= set(SIGNALS)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown() as stops:
            signal.raise_signal(signal.SIGHUP)
            stops.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_is_heard_where_nobody_can_be_told(monkeypatch):
    def gone(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("src.core.shutdown.os.write", gone)
    with pytest.raises(Stopped), GracefulShutdown() as stops:
        signal.raise_signal(signal.SIGTERM)
        stops.check()
