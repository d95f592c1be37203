"""Output that cannot be written, and output on a terminal."""

import contextlib
import io
import sys

import pytest

from diffusion_distillation.runtime.console import SafeStream, safe_output, show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """The visible lines: after a carriage return, new characters replace those at the start of the line."""
        shown = []
        for line in self.getvalue().split("\n"):
            seen = ""
            for part in line.split("\r"):
                seen = part + seen[len(part) :]
            shown.append(seen.rstrip())
        return shown


@contextlib.contextmanager
def on_a_terminal():
    """Connect stdout and stderr to one terminal."""
    shown = Terminal()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        yield shown


def test_messages_replace_the_progress_line():
    """This holds for both streams and for the error that ends a run. Only the last progress line stays."""
    with on_a_terminal() as terminal:
        with safe_output():
            show_progress("step 1 of 3, a rather long line", last=False)
            print("warning: short", file=sys.stderr)
            show_progress("step 2 of 3", last=False)
            print("saved")
            show_progress("step 3 of 3", last=True)
            print("done")
            show_progress("step 1 of 3, of another run", last=False)
        print("error")
    assert terminal.lines() == ["warning: short", "saved", "step 3 of 3", "done", "error", ""]


def test_a_progress_line_fits_the_terminal(monkeypatch):
    """If a line wrapped, the next one would only replace its end."""
    monkeypatch.setenv("COLUMNS", "40")
    with on_a_terminal() as terminal, safe_output():
        show_progress("=" * 100, last=True)
    assert terminal.lines() == ["=" * 39, ""]


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO")])
def test_output_that_cannot_be_written_is_dropped(error):
    class Gone(io.StringIO):
        def write(self, text=""):
            raise error

        flush = write

    for stream in (Gone(), None):
        with contextlib.redirect_stdout(stream):
            with safe_output():
                print("a line", flush=True)
                show_progress("step 1 of 2", last=False)
            assert sys.stdout is stream


def test_names_that_are_not_utf8_are_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n", write_through=True)
    print("of \udcff", file=SafeStream(stream))
    assert stream.buffer.getvalue() == b"of \\udcff\n"
