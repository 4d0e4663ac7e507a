"""Whether who holds a key has signed something: asked of gpgv, which Debian has beside apt."""

import re
import subprocess
from base64 import b64decode
from pathlib import Path
from tempfile import TemporaryDirectory

from uwsgi_consul_fleet.operations.plan import DeployError

SETTING = "consul_release_key"
ARMOUR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END", re.DOTALL)


def check(place: str, content: bytes, signature: bytes, key: Path) -> None:
    """
    :param place: where the content is from, for people
    :param signature: of it, in a file of its own
    :param key: a file with the public key, or with several, as it is published or as gpg has it
    :raises DeployError: where none of them has signed it
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key").write_bytes(_plain(key))
        (folder / "content").write_bytes(content)
        (folder / "signature").write_bytes(signature)
        files = [str(folder / each) for each in ("key", "signature", "content")]
        words = ["gpgv", "--status-fd", "1", "--keyring", *files]
        try:
            result = subprocess.run(words, capture_output=True, check=False)
        except FileNotFoundError as error:
            raise DeployError(f"{SETTING}: install gpgv here; nothing was changed") from error
    said = result.stdout.decode(errors="replace")
    # There may be signatures by other keys beside.
    if "[GNUPG:] VALIDSIG" not in said or "[GNUPG:] BADSIG" in said:
        last = result.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise DeployError(
            f"consul: {place} is not signed by {SETTING} ({key}): {last}; nothing was changed"
        )


def _plain(key: Path) -> bytes:
    """Keys as gpgv reads them: without their armour."""
    try:
        text = key.read_bytes()
    except OSError as error:
        raise DeployError(f"{SETTING}: {key}: {error.strerror}; nothing was changed") from error
    blocks = ARMOUR.findall(text)
    try:
        return b"".join(map(_unpacked, blocks)) or text
    except ValueError as error:
        raise DeployError(f"{SETTING}: {key}: {error}; nothing was changed") from error


def _unpacked(block: bytes) -> bytes:
    """What is behind the headers, without the checksum at its end."""
    lines = block.replace(b"\r\n", b"\n").partition(b"\n\n")[2] or block
    return b64decode(re.sub(rb"\n=[\w+/]{4}\s*$", b"", lines), validate=False)
