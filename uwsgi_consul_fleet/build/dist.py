"""What was built: dist/FINGERPRINT/NAME_plugin.so, each with a manifest."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.build.identity import DIST, Uwsgi
from uwsgi_consul_fleet.build.source import Source


def path(uwsgi: Uwsgi, source: Source) -> Path:
    """Where the plugin for a uWSGI is, or would be."""
    return DIST / uwsgi.fingerprint / source.plugin


def _manifest(plugin: Path) -> Path:
    name = "manifest.json" if plugin.name == "consul_plugin.so" else f"{plugin.stem}.json"
    return plugin.with_name(name)


def is_current(uwsgi: Uwsgi, source: Source) -> bool:
    """Whether the plugin is there, as it was stored, and of these very sources."""
    plugin = path(uwsgi, source)
    try:
        manifest = json.loads(_manifest(plugin).read_text())
        content = plugin.read_bytes()
    except (OSError, ValueError):
        return False
    return bool(
        manifest.get("sources") == source.digest
        and manifest.get("sha256") == hashlib.sha256(content).hexdigest()
    )


def store(uwsgi: Uwsgi, source: Source, plugin: bytes, built_on: str, compiler: str) -> None:
    """Keep a plugin; the manifest comes last, so that a half-written one is rebuilt."""
    target = path(uwsgi, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "plugin": source.name,
        "uwsgi": uwsgi.version,
        "fingerprint": uwsgi.fingerprint,
        "parts": uwsgi.parts,
        "revision": source.revision,
        "sources": source.digest,
        "compiler": compiler,
        "sha256": hashlib.sha256(plugin).hexdigest(),
        "built_on": built_on,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write(target, plugin)
    _write(_manifest(target), json.dumps(manifest, indent=2).encode() + b"\n")


def _write(file: Path, content: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)
