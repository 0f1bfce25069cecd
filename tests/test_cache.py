"""Where the cache folder is: the variable first, then the rules of XDG, then the home folder."""

from pathlib import Path

from workbench.cache import VARIABLE, cache_folder


def test_the_variable_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "near")
    assert cache_folder() == tmp_path / "near"


def test_without_it_the_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "interp-workbench"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for relative in ("", "near"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache_folder() == Path(tmp_path / "home" / ".cache" / "interp-workbench")
