import os
import sys
from pathlib import Path

import pytest
from etils import epath

from diffusion_distillation.checkpoints import load
from diffusion_distillation.errors import InputError
from diffusion_distillation.runtime import files
from diffusion_distillation.runtime.files import absolute, as_path, is_remote, write_atomic


@pytest.mark.parametrize(
    "given", ["gs://bucket/run", "gs:/bucket/run", Path("gs://bucket/run"), epath.Path("gs://bucket/run")]
)
def test_the_path_of_a_bucket_keeps_its_two_slashes(given):
    path = as_path(given)
    assert os.fspath(path / "new") == "gs://bucket/run/new" and os.fspath(absolute(path)) == "gs://bucket/run"
    assert is_remote(path) and not is_remote(as_path("runs/base"))


@pytest.mark.parametrize("given", ["s3://bucket/run", "file:///tmp/run", "GS://bucket/run", Path("hdfs://host/run")])
def test_other_file_systems_are_refused(given):
    with pytest.raises(InputError, match=r"has the scheme .*Use a local folder or a Google Cloud Storage bucket"):
        as_path(given)
    with pytest.raises(InputError, match="has the scheme"):
        load(given)


def test_a_bucket_needs_the_library_that_reads_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gcsfs"):
        as_path("gs://bucket/run")
    assert as_path("runs/C:/base") == epath.Path("runs/C:/base")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = as_path(tmp_path / "new" / "file")
    write_atomic(path, "before")

    def full(*_):
        raise OSError("full")

    for name in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
            patched.setattr(name, full)
            write_atomic(path, "after")
        assert path.read_text() == "before"
    write_atomic(path, "\u00e4".encode())
    assert path.read_text() == "\u00e4"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


def test_files_in_a_bucket_are_written_and_missing_runs_are_named(bucket):
    path = as_path("gs://bucket/run/file")
    write_atomic(path, "there")
    assert (bucket / "run" / "file").read_text() == "there" and path.read_text() == "there"
    with pytest.raises(InputError, match="a run's folder contains 'checkpoints'; this one contains file"):
        load("gs://bucket/run")
    with pytest.raises(InputError, match="No checkpoint in 'gs://bucket/nothing': there is no such folder"):
        load("gs://bucket/nothing")
    assert not Path("gs:").exists() and files.is_remote(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),  # json reads this, but later code may not
        ("[]", "it is of type list, not an object"),
        ('{"a', "Unterminated string"),
        ("{} " * 400_000, "has 1,200,000 bytes; a JSON file may have at most 1,048,576"),
    ],
)
def test_unusual_json_is_refused(tmp_path, text, message):
    path = as_path(tmp_path / "config.json")
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        files.read_json(path)


def test_a_damaged_line_of_json_is_named(tmp_path):
    path = as_path(tmp_path / "metrics.jsonl")
    assert files.read_json_lines(path) == []
    path.write_text('{"step": 1}\n{"st')
    assert files.read_json_lines(path) == [{"step": 1}]  # a process that was killed left a part of a line
    path.write_text('{"step": 1}\n' + "[" * 100_000 + "\n")
    with pytest.raises(InputError, match=r"Line 2 of .*metrics\.jsonl' cannot be read as JSON"):
        files.read_json_lines(path)


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/x") == epath.Path(tmp_path / "x")


def test_files_whose_names_are_not_utf8_are_hashed(tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    Path(path).touch()
    assert len(files.stat_hash([path])) == 16


def test_locking_without_fcntl_is_an_os_error(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OSError, match="no file locks"), files.file_lock(tmp_path / ".lock", lambda holder: None):
        pass
