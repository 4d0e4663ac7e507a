"""The C sources: no warning of two compilers, no finding in what the fuzzers collected."""

import shlex
import subprocess
from pathlib import Path

import pytest
from uwsgi_processes import SOURCES

C_FILES = sorted((SOURCES / "src").glob("*.c"))
FUZZ = Path(__file__).parent / "fuzz"
PARTS = {
    "options": ["options.c", "text.c", "registration.c"],
    "answer": ["answer.c"],
}


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


@pytest.mark.parametrize("target", PARTS)
def test_what_the_fuzzer_collected(target: str, tmp_path: Path) -> None:
    """Its whole corpus, with the sanitizers that it ran with."""
    program = tmp_path / target
    sources = [FUZZ / f"{target}.c", FUZZ / "replay.c"]
    sources += [SOURCES / "src" / name for name in PARTS[target]]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        ["gcc", "-g", *sanitizers, f"-I{SOURCES}/src", *map(str, sources), "-o", str(program)],
        check=True,
    )
    corpus = sorted((FUZZ / "corpus" / target).iterdir())
    assert len(corpus) > 20
    ran = subprocess.run(
        [str(program), *map(str, corpus)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{len(corpus)} files\n"


def test_no_function_is_longer_than_a_screen() -> None:
    for source in C_FILES:
        lines = source.read_text().splitlines()
        begins = [n for n, line in enumerate(lines) if line.endswith(") {") and line[0] not in " }"]
        for begin in begins:
            length = lines[begin:].index("}") + 1
            assert length <= 50, f"{source.name}: {lines[begin]} has {length} lines"
