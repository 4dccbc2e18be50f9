"""News from workers: what arrives, and that nothing depends on it."""

from __future__ import annotations

import pytest

import hypertune_mip as ht

ray = pytest.importorskip("ray")

from hypertune_mip_ray.mailbox import delivered  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def test_progress_is_one_bar_and_each_warning_arrives_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(ht.HypertuneWarning) as caught, delivered(4, progress=True) as mailbox:
        sender = mailbox.sender
        sender.progress(3, 0.25)
        sender.warning("look out")
        sender.progress(4, 0.125)
        sender.warning("look out")  # of a worker that took another's place
    assert [str(each.message) for each in caught] == ["look out"]
    assert "4/4" in (last := capsys.readouterr().err.rstrip().splitlines()[-1].split("\r")[-1])
    assert "loss=0.125" in last


def test_training_does_not_need_the_mailbox() -> None:
    with delivered(2, progress=False) as mailbox:
        sender = mailbox.sender
        sender.progress(1, 1.0)
        ray.kill(sender.mailbox.actor)
        ray.kill(sender.failures.actor)
        sender.progress(2, 1.0)
        sender.failed(ht.TrainingError("too late"))
        assert not sender.has_failed()
        assert mailbox.failure() is None


def test_the_first_error_that_would_come_again_is_kept() -> None:
    with delivered(2, progress=False) as mailbox:
        assert not mailbox.sender.has_failed()
        mailbox.sender.failed(ht.TrainingError("the first"))
        mailbox.sender.failed(ht.TrainingError("of another worker"))
        assert mailbox.sender.has_failed()
        assert str(mailbox.failure()) == "the first"
