"""What is sent of app_source, under which name, and with which requirements."""

import base64
import hashlib
import io
import logging
import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest
from pyinfra.connectors.util import write_stdin
from sources import git

from uwsgi_consul_fleet.operations.applications import archive, requirements, source
from uwsgi_consul_fleet.operations.applications.archive import File, Sources
from uwsgi_consul_fleet.operations.files import Base64
from uwsgi_consul_fleet.operations.plan import DeployError


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def commit(folder: Path, message: str = "x") -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder of that name in a git repository, with two files in it."""
    folder = tmp_path / "repository" / "shop"
    write(folder, a="1\n", b="2\n")
    git(folder.parent, "init", "--quiet")
    commit(folder.parent)
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder that is in no repository, with two files in it."""
    write(tmp_path / "shop", a="1\n", b="2\n")
    return tmp_path / "shop"


def sent(folder: Path) -> list[str]:
    return [entry.path for entry in source.read(folder)]


def name(folder: Path) -> str:
    return source.name(folder, Sources(source.read(folder)).digest)


def refused(folder: Path) -> str:
    with pytest.raises(DeployError) as caught:
        source.digest(source.read(folder))
    said = str(caught.value)
    assert said.startswith("app_source: ") and said.endswith("nothing was changed"), said
    assert "\n" not in said
    return said


def digest(folder: Path) -> str:
    return source.digest(source.read(folder))


# --- What git tracks ---


def test_what_git_tracks_is_sent_and_what_it_does_not_is_named(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shop / ".gitignore").write_text("*.env\n")
    commit(shop)
    (shop / "secret.env").touch()
    (shop / "__pycache__").mkdir()
    (shop / "__pycache__/a.pyc").touch()
    caplog.set_level(logging.INFO)
    assert sent(shop) == ["shop/.gitignore", "shop/a.py", "shop/b.py"]
    assert not caplog.messages
    write(shop, new="3")
    (shop / "static").mkdir()
    (shop / "static" / "x.js").touch()
    assert sent(shop) == ["shop/.gitignore", "shop/a.py", "shop/b.py"]
    (said,) = caplog.messages
    assert said.endswith(f"{shop}: git does not track, so not sent: new.py, static/")


def test_a_release_without_a_file_is_refused(shop: Path, tmp_path: Path) -> None:
    new = shop.parent / "new"
    write(new, a="1")
    assert f"git tracks nothing in {new}: git add" in refused(new)
    git(shop.parent, "add", "new")
    shutil.rmtree(new)
    new.mkdir()
    assert f"no file in {new}" in refused(new)
    (tmp_path / "empty").mkdir()
    assert "no file in" in refused(tmp_path / "empty")


def test_a_removed_file_is_not_sent_and_shows_in_the_name(shop: Path) -> None:
    (shop / "b.py").unlink()
    assert sent(shop) == ["shop/a.py"]
    assert "-dirty-" in name(shop)


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"])
def test_a_git_hook_leads_to_no_other_repository(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As in a hook of the repository that is pushed to, which deploys."""
    expected = sent(shop), name(shop)
    other = tmp_path / "other"
    write(other, c="3")
    git(other, "init", "--quiet")
    commit(other)
    values = {"GIT_DIR": other / ".git", "GIT_INDEX_FILE": other / ".git" / "index"}
    monkeypatch.setenv(variable, str(values.get(variable, other)))
    assert (sent(shop), name(shop)) == expected


def test_a_repository_that_git_can_not_read_is_not_sent_whole(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "secret.env").write_text("x")
    assert "in a git repository that git can't read" in refused(tmp_path)


def test_submodules_are_sent_when_they_are_there(shop: Path, tmp_path: Path) -> None:
    inner, library = tmp_path / "inner", tmp_path / "library"
    for folder in (inner, library):
        write(folder, **{folder.name: "1"})
        git(folder, "init", "--quiet")
        commit(folder)
    git(library, "submodule", "--quiet", "add", str(inner), "inner")
    commit(library)
    git(shop.parent, "submodule", "--quiet", "add", str(library), "shop/library")
    commit(shop.parent)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(shop.parent), str(clone))
    assert f"{clone}/shop/library is a repository of its own" in refused(clone / "shop")
    git(clone / "shop", "submodule", "--quiet", "update", "--init", "--recursive")
    assert {"shop/library/library.py", "shop/library/inner/inner.py"} <= {*sent(clone / "shop")}
    clean = name(clone / "shop")
    write(clone / "shop/library/inner", inner="2")
    assert name(clone / "shop").startswith(f"{clean}-dirty-")


def test_what_git_lfs_has_not_fetched_is_refused(shop: Path) -> None:
    """As in a shallow clone that CI made."""
    (shop / "logo.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    commit(shop)
    assert f"{shop}/logo.png was not fetched by git-lfs yet: git -C {shop} lfs pull" in refused(
        shop
    )


# --- Links, and what is no file ---


def test_links_to_files_and_folders_are_links_there(shop: Path, tmp_path: Path) -> None:
    (shop / "data").mkdir()
    write(shop / "data", c="3")
    for link, target in {
        "to_file.py": "a.py",
        "to_folder": "data",
        "data/back.py": "../b.py",
        "by_name.py": "../shop/a.py",
        "nowhere": "not/there",
    }.items():
        (shop / link).symlink_to(target)
    commit(shop)
    content = b"".join(archive.archive(Sources(source.read(shop)), []))
    (tmp_path / "host").mkdir()
    subprocess.run(["tar", "-xzf", "-", "-C", tmp_path / "host"], input=content, check=True)
    there = tmp_path / "host" / "shop"
    assert (there / "to_folder/back.py").read_text() == "2\n"
    assert (there / "to_file.py").readlink() == Path("a.py")
    assert (there / "by_name.py").read_text() == "1\n"
    assert (there / "nowhere").is_symlink()
    before = digest(shop)
    (shop / "to_file.py").unlink()
    (shop / "to_file.py").symlink_to("b.py")
    assert digest(shop) != before


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside.py", "out", "{shop}/a.py"])
def test_a_link_that_leads_out_is_refused(shop: Path, tmp_path: Path, target: str) -> None:
    write(tmp_path, outside="x")
    (shop / "out").symlink_to("../../outside.py")
    (shop / "link").symlink_to(target.format(shop=shop))
    git(shop, "add", "link")
    assert f"{shop}/link is a link to {target.format(shop=shop)}, which is not in" in refused(shop)


def test_a_link_to_what_is_not_sent_is_refused(shop: Path) -> None:
    write(shop, new="not in git")
    (shop / "link").symlink_to("new.py")
    git(shop, "add", "link")
    assert f"{shop}/link is a link to {shop}/new.py, which is not sent" in refused(shop)


def test_what_lies_behind_a_link_is_refused(shop: Path, tmp_path: Path) -> None:
    write(shop / "data", c="3")
    commit(shop)
    (shop / "data").rename(tmp_path / "elsewhere")
    (shop / "data").symlink_to(tmp_path / "elsewhere")
    assert f"{shop}/data/c.py lies behind a link" in refused(shop)


@pytest.mark.parametrize("make", ["fifo", "socket"])
def test_what_is_no_file_is_refused(
    plain: Path, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plain)  # a socket's path may not be long
    if make == "fifo":
        os.mkfifo("odd")
    else:
        socket.socket(socket.AF_UNIX).bind("odd")
    assert f"{plain}/odd is neither a file nor a folder nor a link" in refused(plain)


# --- Names ---


def test_a_shallow_clone_gives_the_same_name(shop: Path, tmp_path: Path) -> None:
    (shop.parent / "elsewhere").write_text("x")
    commit(shop.parent)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{shop.parent}", str(shallow))
    assert (shallow / ".git/shallow").exists()
    git(shallow, "config", "core.abbrev", "20")
    assert name(shallow / "shop") == name(shop)
    assert digest(shallow / "shop") == digest(shop)


def test_a_release_is_named_after_what_git_has_of_its_source(shop: Path) -> None:
    clean = name(shop)
    assert git(shop, "rev-parse", "HEAD:shop").startswith(clean) and len(clean) == 10
    (shop.parent / "elsewhere").write_text("x")
    commit(shop.parent)
    assert name(shop) == clean
    write(shop, a="2\n")
    assert name(shop) == f"{clean}-dirty-{digest(shop)[:8]}"
    commit(shop)
    assert name(shop) != clean and len(name(shop)) == 10
    write(shop, a="1\n")
    commit(shop)
    assert name(shop) == clean  # the same bytes


def test_without_git_it_is_named_after_its_content(plain: Path) -> None:
    assert name(plain) == digest(plain)[:8]


@pytest.mark.parametrize("change", ["content", "name", "mode", "removal"])
def test_the_hash_of_the_sources_is_of_everything_in_them(plain: Path, change: str) -> None:
    before = digest(plain)
    assert digest(plain) == before
    match change:
        case "content":
            write(plain, a="2\n")
        case "name":
            (plain / "a.py").rename(plain / "a1.py")
        case "mode":
            (plain / "a.py").chmod(0o755)
        case "removal":
            (plain / "a.py").unlink()
    assert digest(plain) != before


# --- A folder without git ---


def test_what_is_sent_without_git_is_said(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for ignored in (
        ".venv/x",
        "node_modules/y/z.js",
        "__pycache__/a.pyc",
        ".mypy_cache/x",
        ".hg/x",
    ):
        write((plain / ignored).parent)
        (plain / ignored).write_text("x")
    assert sent(plain) == ["shop/a.py", "shop/b.py"]
    assert caplog.messages == [
        f"    {plain} is in no git repository: 2 files with 4 bytes are sent"
    ]


def test_an_ignore_file_is_read_as_git_reads_it(plain: Path) -> None:
    """Each case is one that git itself decides the same way."""
    for path in (
        "log/a.log", "sub/keep.log", "sub/b.log", "build/x", "sub/build/x", "top.txt",
        "sub/top.txt", "node_modules/own.js", "sub/deep/c.tmp",
    ):  # fmt: skip
        write((plain / path).parent)
        (plain / path).write_text("x")
    (plain / ".gitignore").write_text("# ours\n*.log\n/top.txt\nbuild/\n!node_modules/\n")
    (plain / "sub/.gitignore").write_text("!keep.log\ndeep/*.tmp\n")
    found = sent(plain)
    assert "shop/node_modules/own.js" in found and "shop/sub/keep.log" in found
    git(plain, "init", "--quiet")
    listing = git(plain, "ls-files", "--others", "--exclude-standard")
    assert found == sorted(f"shop/{line}" for line in listing.splitlines())


@pytest.mark.parametrize("secret", [".env", ".env.production", "id_rsa", "tls/server.key", "a.pem"])
def test_the_usual_names_of_secrets_are_refused_unless_they_are_named(
    plain: Path, secret: str
) -> None:
    write((plain / secret).parent)
    (plain / secret).write_text("hush")
    (plain / ".env.example").touch()
    said = refused(plain)
    assert f"{plain} would be sent with {secret}, where" in said and f"!/{secret}" in said
    ignore = plain / ".gitignore"
    ignore.write_text(f"/{secret}\n")
    assert f"shop/{secret}" not in sent(plain)
    ignore.write_text(f"!/{secret}\n")
    assert f"shop/{secret}" in sent(plain) and "shop/.env.example" in sent(plain)


# --- The fleet's own secrets ---


@pytest.mark.parametrize("way", ["git", "ignore file"])
def test_a_fleets_secrets_are_never_sent(
    shop: Path, plain: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the source is the operator's own folder, whatever git tracks and ignore files say."""
    folder = shop if way == "git" else plain
    (folder / ".fleet/x").mkdir(parents=True)
    (folder / ".fleet/x/secrets.json").write_text("hush")
    if way == "git":
        git(shop, "add", "--force", ".fleet")
        commit(shop)
        assert ".fleet/x/secrets.json" in git(shop, "ls-files")
    else:
        (plain / ".gitignore").write_text("!.fleet/\n!secrets.json\n")
    found = sent(folder)
    assert "shop/a.py" in found and not any(".fleet" in each for each in found)


# --- The archive ---


def test_sources_that_change_meanwhile_are_not_sent(plain: Path) -> None:
    sources = Sources(source.read(plain))
    write(plain, a="3\n")
    with pytest.raises(DeployError, match="app_source: it has changed since this run began"):
        sources.packed()
    write(plain, a="longer than it was\n")
    with pytest.raises(DeployError, match="app_source: it has changed since this run began"):
        sources.packed()


class Host:
    """The standard input of a command on one."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.received.append(line)

    def close(self) -> None:
        pass


def test_the_sources_are_packed_once_and_end_with_what_is_a_hosts_own(plain: Path) -> None:
    (plain / "large").write_bytes(os.urandom(300_000))
    (plain / "a.py").chmod(0o755)
    sources = Sources(source.read(plain))
    never_asked = Base64(lambda: archive.archive(sources, []))
    assert never_asked and sources._packed is None  # as with --dry
    packed = sources.packed()
    for own in (b"of one", b"of another"):
        pieces = Base64(lambda own=own: archive.archive(sources, [("own", File(own, 0o600))]))
        host = Host()
        write_stdin(pieces, host)
        assert max(map(len, host.received)) < 100_000
        whole = base64.b64decode(b"".join(host.received))
        with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
            assert opened.getnames() == ["shop/a.py", "shop/b.py", "shop/large", "own"]
            assert opened.extractfile("own").read() == own
            assert (opened.getmember("shop/a.py").mode, opened.getmember("own").mode) == (
                0o755,
                0o600,
            )
            assert opened.extractfile("shop/large").read() == (plain / "large").read_bytes()
    assert sources.packed() is packed


# --- Requirements ---


def required(folder: Path, **files: str) -> requirements.Requirements:
    for each, text in files.items():
        path = folder / f"{each.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return requirements.read(folder / "requirements.txt")


def test_requirements_alone_are_sent_as_they_are(tmp_path: Path) -> None:
    text = "flask==3 --hash=sha256:0\n# -r other.txt\n-r https://example.org/x.txt\n"
    found = required(tmp_path, requirements=text)
    assert (found.main, found.files) == ("requirements.txt", {"requirements.txt": text.encode()})
    # Hosts have environments of that name, made by the version before.
    assert found.digest == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "line",
    [
        "-r a/base.txt", "-ra/base.txt", "--requirement a/base.txt", "--requirement=a/base.txt",
        "  -r 'a/base.txt' # ours", "-r \\\n a/base.txt", "-c a/base.txt",
        "--constraint=./a/base.txt",
        "--no-binary :all:\n-c a/base.txt",
    ],
)  # fmt: skip
def test_what_requirements_include_is_sent_and_counts(tmp_path: Path, line: str) -> None:
    found = required(
        tmp_path, requirements=f"flask\n{line}\n", a__base="-c ../limits.txt", limits="x<2"
    )
    assert found.main == "requirements.d/requirements.txt"
    assert {*found.files} == {
        f"requirements.d/{path}.txt" for path in ("requirements", "a/base", "limits")
    }
    assert required(tmp_path, limits="x<3").digest != found.digest


def test_what_lies_beside_the_folder_is_found_there_too(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    found = required(shop, requirements="-r ../shared/base.txt", **{"../shared/base": "x"})
    assert [*found.files] == [
        "requirements.d/shop/requirements.txt", "requirements.d/shared/base.txt"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flask\n\n-r missing.txt\n", "{0}/requirements.txt:3: {0}/missing.txt: No such file"),
        (
            "-c /opt/limits.txt\n",
            "{0}/requirements.txt:1: /opt/limits.txt is not there on the hosts",
        ),
        ("-r b.txt\n", "{0}/b.txt:2: {0}/requirements.txt includes itself"),
        ("-r .\n", "{0}/requirements.txt:1: {0}: Is a directory"),
    ],
)
def test_wrong_includes_are_refused_with_file_and_line(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(DeployError) as caught:
        required(tmp_path, requirements=text, b="x\n-r requirements.txt\n")
    assert f"app_requirements: {says.format(tmp_path)}" in str(caught.value)


def test_a_file_that_is_included_twice_is_no_loop(tmp_path: Path) -> None:
    found = required(
        tmp_path, requirements="-r a.txt\n-r b.txt\n", a="-c c.txt", b="-c c.txt", c="x"
    )
    assert len(found.files) == 4
