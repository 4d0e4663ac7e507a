"""An app_source that is fetched: from the URL of a repository, or from a folder's at app_ref."""

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pyinfra import logger

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.git import git
from uwsgi_consul_fleet.operations.applications.listing import is_in_a_repository, refusal
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.repository import GitError, Repository, is_url

KEPT = 5  # commits of a repository; another run may be at work with one
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
COMPLETE = "complete"  # marks a checkout


@cache  # once in a run, whatever moves meanwhile
def fetch(source: str, ref: str | None) -> Path:
    """A folder with what it is at a branch, a tag or a commit; at its default branch without one.

    :param source: a URL, or a folder in a repository
    :raises DeployError: where it can't be had
    """
    try:
        if is_url(source):
            return _fetched(Repository.at(source), ref)
        repository, inside = _around(Path(source).expanduser().resolve())
        return _fetched(repository, ref) / inside
    except FleetError as error:
        raise refusal(str(error)) from None


def _fetched(repository: Repository, ref: str | None) -> Path:
    try:
        with _alone(repository):
            commit = _had(repository, ref)
            folder = _with_submodules(repository, commit)
    except OSError as error:
        raise refusal(f"{repository.url} can't be kept in {repository.folder}: {error}") from None
    logger.info(f"    {repository.url}: {ref or 'its default branch'} is {commit[:10]}")
    return folder


def _around(folder: Path) -> tuple[Repository, str]:
    """The repository that a folder is in, and where it is in there."""
    top, inside = (
        (git(folder, "rev-parse", what) or b"").decode().removesuffix("\n")
        for what in ("--show-toplevel", "--show-prefix")
    )
    if not top and is_in_a_repository(folder):
        raise _no_ref(f"git can't read the repository of {folder}; try: git -C {folder} log")
    if not top:
        raise _no_ref(f"{folder} is in no git repository")
    return Repository(top, Path(top).name), inside


@contextmanager
def _alone(repository: Repository) -> Iterator[None]:
    """Two runs may fetch the same; what one of them has checked out stays for a while."""
    folder = repository.folder
    folder.mkdir(parents=True, exist_ok=True)
    folder.parent.joinpath(".gitignore").write_text("*\n")
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"    {repository.url}: waits for another run, which is fetching it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _had(repository: Repository, ref: str | None) -> str:
    """The commit, which is checked out afterwards."""
    name = _name(repository, ref)
    try:
        return _checked_out(repository, name)
    except GitError:
        # A run that was killed, or a machine without power, may have left it so.
        for each in repository.folder.iterdir():
            if each.is_dir():
                shutil.rmtree(each)
            elif each.name != "lock":
                each.unlink()
        return _checked_out(repository, name)


def _name(repository: Repository, ref: str | None) -> str:
    """What it is called there: the branch or the tag in full, or the commit."""
    if ref and COMMIT.fullmatch(ref) and (repository.folder / ref / COMPLETE).exists():
        return ref  # which is the same for ever: nobody has to be asked
    names = [f"refs/{kind}/{ref}" for kind in ("heads", "tags", "remotes")] if ref else ["HEAD"]
    names += [ref] if ref and ref.startswith("refs/") else []
    # Outside of what is kept, which may be damaged.
    listed = repository.git("ls-remote", "--", repository.url, *names, folder=Path("/"))
    # Others may end alike.
    found = [name for line in listed.splitlines() if (name := line.split("\t")[1]) in names]
    if len(found) > 1:
        raise _no_ref(f"{ref} is several in {repository.url}: write {' or '.join(found)}")
    if found:
        return found[0]
    if ref is None:
        raise refusal(f"{repository.url} has no commit on its default branch")
    if re.fullmatch(r"[0-9a-f]{7,64}", ref):
        return ref
    raise _no_ref(f"{repository.url} has no branch, tag or commit {ref}")


def _no_ref(reason: str) -> DeployError:
    return DeployError(f"app_ref: {reason}; nothing was changed")


def _have(repository: Repository, name: str) -> str:
    words = ("fetch", "--quiet", "--no-tags", "--force")
    try:
        repository.git(*words, "--depth=1", "--", repository.url, name)
    except GitError:  # a server may know no depths
        repository.git(*words, "--", repository.url, name)
    return repository.git("rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()


def _have_commit(repository: Repository, commit: str) -> str:
    """By itself, if the server gives that away; else with every branch and tag."""
    if COMMIT.fullmatch(commit):
        with suppress(GitError):
            repository.git("cat-file", "-e", f"{commit}^{{tree}}")
            return commit
        with suppress(GitError):
            return _have(repository, commit)
    shallow = ["--unshallow"] if (repository.folder / "shallow").exists() else []
    every = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
    # A branch may have gone, and another one be in its folder.
    words = ("fetch", "--quiet", "--force", "--prune", *shallow)
    repository.git(*words, "--", repository.url, *every)
    try:
        return repository.git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").strip()
    except GitError:
        raise _no_ref(f"{repository.url} has no commit {commit} on a branch or a tag") from None


def _checked_out(repository: Repository, name: str) -> str:
    repository.git("init", "--quiet", "--bare")
    # A submodule's relative URL begins there.
    repository.git("config", "remote.origin.url", repository.url)
    is_commit = not name.startswith(("HEAD", "refs/"))
    commit = (_have_commit if is_commit else _have)(repository, name)
    place = repository.folder / commit
    folder = place / repository.name
    if not (place / COMPLETE).exists():
        shutil.rmtree(place, ignore_errors=True)
        repository.git("worktree", "prune")
        repository.git("worktree", "add", "--quiet", "--force", "--detach", str(folder), commit)
    for words in ("reset --quiet --hard", "clean --quiet -ffdx"):
        repository.git(*words.split(), folder=folder)
    return commit


def _with_submodules(repository: Repository, commit: str) -> Path:
    folder = repository.folder / commit / repository.name
    words = "submodule --quiet update --init --recursive --force"
    repository.git(*words.split(), folder=folder)
    (folder.parent / COMPLETE).touch()
    for other in _old(repository.folder):
        shutil.rmtree(other)
    return folder


def _old(folder: Path) -> list[Path]:
    """What nobody is at work with: also what a run that was killed has left half done."""
    places = [each for each in folder.iterdir() if COMMIT.fullmatch(each.name)]
    done = [each for each in places if (each / COMPLETE).exists()]
    done.sort(key=lambda place: (place / COMPLETE).stat().st_mtime, reverse=True)
    return [each for each in places if each not in done[:KEPT]]
