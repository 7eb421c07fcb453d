"""No text from outside moves the cursor, changes the title, or hides text on a terminal."""

import ast
import io
import logging
import sys
from pathlib import Path

import pytest

import llmdreamer
from llmdreamer.sweep.status import RunStatus, SweepHeader, SweepStatus
from llmdreamer.sweep.status_table import render_text
from llmdreamer.utils.output import print_error, print_line, replace_unencodable
from llmdreamer.utils.printable import printable
from llmdreamer.utils.redact import RedactingFormatter

HOSTILE = {
    "\x1b[31mred\x1b[0m": "red",
    "\x1b[2J\x1b[1;1Htop": "top",
    "\x1b]0;title\x07text": "text",
    "\x1b]52;c;bHM=\x1b\\text": "text",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x1bP1$r\x1b\\text": "text",
    "\x9b31mred\x9d0;title\x9ctext": "redtext",
    "\x1bcreset\x1b(0graphics": "resetgraphics",
    "good\rbad": "good bad",
    "a\r\nb\tc\n": "a\nb\tc\n",
    "bell\x07 back\x08 nul\x00 del\x7f": "bell back nul del",
    "user\u202egnp.exe\u2066 \u200f": "usergnp.exe ",
    "next\x85line\u2028line": "next line line",
    "path\udcff": "path\ufffd",
    "\x1b]0;unfinished title\nsecond line": "\nsecond line",
    "é ± 日本 🙂": "é ± 日本 🙂",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_printable_removes_what_a_terminal_obeys(text: str):
    assert printable(text) == HOSTILE[text]
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_log_lines_and_printed_lines_hold_no_control_characters(
    text: str, capsys: pytest.CaptureFixture[str]
):
    record = logging.LogRecord("x", logging.ERROR, "", 1, "%s", (text,), None)
    assert RedactingFormatter("%(message)s").format(record) == HOSTILE[text]
    print_line(text)
    print_error(text)
    assert capsys.readouterr() == (HOSTILE[text] + "\n", HOSTILE[text] + "\n")


def test_status_of_a_sweep_holds_no_control_characters():
    hostile = "\x1b]0;title\x07\x1b[31mred\r"
    row = {"number": 0, "seed": "0", "state": "failed", "env_step": 1, "total_env_steps": 1}
    row |= {"values": [1.0], "seconds": 1.0, "seconds_left": None, "folder": "x"}
    run = RunStatus(arm=hostile, params=hostile, cause=hostile, **row)
    header = SweepHeader(hostile, 2, "eval/return", [True], [0])
    text = render_text(SweepStatus("name", header, [], [run]))
    assert "red" in text
    assert printable(text) == text


def test_only_one_module_prints():
    """`print` elsewhere would show text that is not cleaned. The status command cleans its own."""
    package = Path(llmdreamer.__file__).parent
    printing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printing == {"utils/output.py", "cli/status.py"}


def test_line_outside_the_encoding_of_the_terminal_is_printed(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    replace_unencodable()
    print_line("12 ± 3")
    assert raw.getvalue() == b"12 ? 3\n"


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, ClosedPipe()])
def test_error_line_survives_a_closed_standard_error(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
):
    monkeypatch.setattr(sys, "stderr", stream)
    print_error("nobody reads this")
