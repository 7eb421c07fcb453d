"""A checkpoint is whole or it is not there, the newest good one is found, and none can run code."""

import hashlib
import logging
import os
import pickle

import pytest
import torch

from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.utils.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def state(step):
    return {"step": step, "weights": torch.full((3,), float(step)), "words": ["a", None, 0.5]}


def test_saved_state_is_loaded_unchanged(checkpoints):
    checkpoints.save(state(7), 7)
    back = checkpoints.newest(CPU)
    assert (back["step"], back["words"]) == (7, ["a", None, 0.5])
    assert torch.equal(back["weights"], torch.full((3,), 7.0))


def test_save_keeps_only_the_newest_checkpoints(checkpoints):
    for step in (9, 10, 100):  # by number, not by spelling
        checkpoints.save(state(step), step)
    names = sorted(path.name[:17] for path in checkpoints.folder.iterdir())
    assert names == ["step-000000000010", "step-000000000100"]
    assert checkpoints.newest(CPU)["step"] == 100


def test_save_after_older_resume_deletes_later_checkpoints(checkpoints):
    for step in (10, 20):
        checkpoints.save(state(step), step)
    checkpoints.save(state(15), 15)  # on from 10, 20 being damaged
    names = sorted(path.name[:17] for path in checkpoints.folder.iterdir())
    assert names == ["step-000000000010", "step-000000000015"]


def truncate(content):
    return content[: len(content) // 2]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip, lambda content: b""])
def test_damaged_checkpoint_is_skipped_with_a_warning(checkpoints, caplog, damage):
    before = checkpoints.save(state(1), 1)
    path = checkpoints.save(state(2), 2)
    path.write_bytes(damage(path.read_bytes()))
    assert checkpoints.newest(CPU)["step"] == 1
    (message,) = caplog.messages
    assert str(path) in message and str(before) in message


def test_no_undamaged_checkpoint_is_a_config_error(checkpoints):
    path = checkpoints.save(state(1), 1)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="missing checkpoint: .* holds no undamaged one"):
        checkpoints.newest(CPU)


def test_draft_of_a_killed_process_is_removed_and_never_loaded(checkpoints):
    checkpoints.save(state(1), 1)
    draft = checkpoints.folder / "step-000000000002-0123456789abcdef.tmp"
    draft.write_bytes(b"half a checkp")
    assert checkpoints.newest(CPU)["step"] == 1
    checkpoints.clear_drafts()
    assert not draft.exists()


def test_reading_leaves_drafts_and_creates_no_folder(checkpoints, tmp_path):
    checkpoints.save(state(1), 1)
    draft = checkpoints.folder / "step-000000000002.tmp"
    draft.write_bytes(b"half a checkp")
    assert Checkpoints(checkpoints.folder, keep=2).newest(CPU)["step"] == 1
    with pytest.raises(ConfigError, match="missing checkpoint"):
        Checkpoints(tmp_path / "best", keep=1).newest(CPU)
    assert draft.exists() and not (tmp_path / "best").exists()


def test_folders_and_broken_links_are_not_checkpoints(checkpoints):
    checkpoints.save(state(1), 1)
    digest = "0123456789abcdef"
    (checkpoints.folder / f"step-000000000000-{digest}.pt").mkdir()
    (checkpoints.folder / f"step-000000000009-{digest}.pt").mkdir()
    (checkpoints.folder / f"step-000000000008-{digest}.pt").symlink_to("nowhere")
    assert checkpoints.newest(CPU)["step"] == 1
    for step in (2, 3):
        checkpoints.save(state(step), step)
    assert checkpoints.newest(CPU)["step"] == 3
    assert len(list(checkpoints.folder.iterdir())) == 5


def test_other_files_are_left_alone(checkpoints):
    checkpoints.folder.mkdir()
    (checkpoints.folder / "notes.txt").write_text("mine")
    for step in (1, 2, 3):
        checkpoints.save(state(step), step)
    assert (checkpoints.folder / "notes.txt").read_text() == "mine"


def test_full_disk_logs_a_warning_and_keeps_older_checkpoints(checkpoints, monkeypatch, caplog):
    checkpoints.save(state(1), 1)
    checkpoints.save(state(2), 2)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.save(state(3), 3) is None
    assert "no checkpoint at policy step 3: [Errno 28]" in caplog.text
    assert checkpoints.newest(CPU)["step"] == 2
    assert len(list(checkpoints.folder.iterdir())) == 2


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("pickled", [torch.save, pickle.dump])
def test_checkpoint_cannot_run_code(checkpoints, tmp_path, pickled):
    draft = tmp_path / "draft"
    with open(draft, "wb") as file:
        pickled({"trainer": Hostile(tmp_path / "owned")}, file)
    content = draft.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]  # a stranger can compute it as well
    checkpoints.folder.mkdir()
    (checkpoints.folder / f"step-000000000009-{digest}.pt").write_bytes(content)
    with pytest.raises(ConfigError, match="more than tensors"):
        checkpoints.newest(CPU)
    assert not (tmp_path / "owned").exists()
