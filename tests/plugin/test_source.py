"""The C sources: no warning of two compilers, no finding in what the fuzzers collected."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT
from uwsgi_processes import SOURCES

C_FILES = sorted((SOURCES / "src").glob("*.c"))
FUZZ = Path(__file__).parent / "fuzz"


@pytest.fixture(scope="session")
def header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this uWSGI's own header; it is not free of warnings itself."""
    folder = tmp_path_factory.mktemp("header")
    shown = subprocess.run(["uwsgi", "--dot-h"], capture_output=True, text=True, check=True)
    (folder / "uwsgi.h").write_text(shown.stdout)
    return folder


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_warning(compiler: str, header: Path, tmp_path: Path) -> None:
    flags = subprocess.run(["uwsgi", "--cflags"], capture_output=True, text=True, check=True)
    defined = [word for word in shlex.split(flags.stdout) if word.startswith("-D")]
    warnings = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
    command = [compiler, "-O2", "-fPIC", *warnings, *defined, "-isystem", str(header), "-c"]
    for source in C_FILES:
        target = tmp_path / f"{source.stem}.o"
        built = subprocess.run(
            [*command, str(source), "-o", str(target)], capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr


def test_the_fuzzers_find_nothing(tmp_path: Path) -> None:
    """In all that they once collected, and in a second of new input each."""
    corpus = tmp_path / "corpus"
    shutil.copytree(FUZZ / "corpus", corpus)
    for target in ("options", "answer", "conversation"):
        assert len(list((corpus / target).iterdir())) > 50
    command = [str(ROOT / "script/fuzz"), "1", str(corpus)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("no finding; the corpus has") == 3


def test_no_function_is_longer_than_a_screen() -> None:
    for source in C_FILES:
        lines = source.read_text().splitlines()
        begins = [n for n, line in enumerate(lines) if line.endswith(") {") and line[0] not in " }"]
        for begin in begins:
            length = lines[begin:].index("}") + 1
            assert length <= 50, f"{source.name}: {lines[begin]} has {length} lines"
