"""A package of Perl, of Ruby and of PHP, as their registries have them, and projects that need it.

All of them are called ahoy, and say in what language they are written. The settings of the projects
are those of docs/frameworks.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkout import ROOT

VERSION = "1.5"
PERL = {
    "Ahoy-1.5/Makefile.PL": """
use ExtUtils::MakeMaker;
WriteMakefile(NAME => 'Ahoy', VERSION => '1.5');
""",
    "Ahoy-1.5/lib/Ahoy.pm": """
package Ahoy;
our $VERSION = '1.5';
sub word { 'ahoy from Perl' }
1;
""",
    "Ahoy-1.5/MANIFEST": "Makefile.PL\nlib/Ahoy.pm\n",
}
GEMSPEC = """\
--- !ruby/object:Gem::Specification
name: NAME
version: !ruby/object:Gem::Version
  version: 'VERSION'
platform: ruby
authors: [A]
date: 2020-01-01 00:00:00.000000000 Z
dependencies: []
extensions: EXTENSIONS
files: []
require_paths: [lib]
specification_version: 4
summary: It says ahoy
"""
RUBY = {
    "lib/ahoy.rb": "require 'ahoy/word'\n",
    "ext/extconf.rb": "require 'mkmf'\ncreate_makefile('ahoy/word')\n",
    "ext/word.c": """
#include <ruby.h>
static VALUE word(VALUE self) { return rb_str_new_cstr("ahoy from Ruby"); }
void Init_word(void) {
    rb_define_singleton_method(rb_define_module("Ahoy"), "word", word, 0);
}
""",
}
PHP = {
    "ahoy/composer.json": '{"name": "sea/ahoy"}',
    "ahoy/src/Word.php": "<?php namespace Ahoy; class Word { const WORD = 'ahoy from PHP'; }",
}


def packages(rack: Path) -> dict[str, bytes]:
    """What a web server has to have, by its path.

    :param rack: a folder with what Debian has of Rack, by its name as a gem
    """
    gems = {
        f"ahoy-{VERSION}": _gem("ahoy", VERSION, RUBY, "[ext/extconf.rb]"),
        rack.name: _gem("rack", rack.name.removeprefix("rack-"), _files(rack), "[]"),
    }
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as opened:
        for name, text in PHP.items():
            opened.writestr(name, text)
    found = {
        "authors/id/S/SE/SEA/Ahoy-1.5.tar.gz": _tar(PERL, "w:gz"),
        "ahoy.zip": zipped.getvalue(),
    }
    listed = ["created_at: 2020-01-01T00:00:00Z", "---"]
    for full, gem in gems.items():
        name, _, version = full.partition("-")
        info = f"---\n{version} |checksum:{hashlib.sha256(gem).hexdigest()}\n".encode()
        listed.append(f"{name} {version} {hashlib.md5(info, usedforsecurity=False).hexdigest()}")
        found |= {f"gems/{full}.gem": gem, f"info/{name}": info}
    found["versions"] = "".join(f"{line}\n" for line in listed).encode()
    return found


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _gem(name: str, version: str, files: Mapping[str, str | bytes], extensions: str) -> bytes:
    said = {"NAME": name, "VERSION": version, "EXTENSIONS": extensions}
    text = GEMSPEC
    for word, value in said.items():
        text = text.replace(word, value)
    packed = {"metadata.gz": gzip.compress(text.encode()), "data.tar.gz": _tar(files, "w:gz")}
    return _tar(packed, "w:")


def _tar(files: Mapping[str, str | bytes], mode: str) -> bytes:
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode=mode) as opened:  # type: ignore[call-overload]
        for name, text in files.items():
            content = text.encode() if isinstance(text, str) else text
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return found.getvalue()


# Each answers with what its environment and the package say. A release is a comment more.
PROJECTS = {
    "perl": {
        "app.psgi": """
use strict;
use Ahoy;
use JSON::PP;
use Plack::Request;

sub {
    my $path = Plack::Request->new(shift)->path;
    my %found = (port => $ENV{APP_PORT}, release => $ENV{APP_RELEASE}, word => Ahoy::word());
    return [200, ["Content-Type" => "application/json"], [encode_json({%found, path => $path})]];
};
""",
        "cpanfile": "requires 'Ahoy', '1.5', url => 'URL/authors/id/S/SE/SEA/Ahoy-1.5.tar.gz';\n",
        "cpanfile.snapshot": """\
# carton snapshot format: version 1.0
DISTRIBUTIONS
  Ahoy-1.5
    pathname: S/SE/SEA/Ahoy-1.5.tar.gz
    provides:
      Ahoy 1.5
    requirements:
      ExtUtils::MakeMaker 0
""",
    },
    "ruby": {
        "config.ru": """
require "ahoy"
require "json"
require "rack"

run lambda { |env|
  found = {port: ENV["APP_PORT"], release: ENV["APP_RELEASE"], word: File.read("built").strip}
  found[:path] = Rack::Request.new(env).path
  [200, {"Content-Type" => "application/json"}, [found.to_json]]
}
""",
        "Gemfile": 'source "URL"\ngem "ahoy"\ngem "rack", "< 3"\n',
        "Gemfile.lock": """\
GEM
  remote: URL/
  specs:
    ahoy (1.5)
    rack (RACK)

PLATFORMS
  ruby

DEPENDENCIES
  ahoy
  rack (< 3)
""",
    },
    "php": {
        "public/index.php": """<?php
require __DIR__ . "/../vendor/autoload.php";
echo json_encode(Shop\\Answer::make());
""",
        "public/css/shop.css": "body {}\n",
        "public/index.php.bak": "<?php // secret\n",
        "public/.hidden": "secret\n",
        "src/Answer.php": """<?php
namespace Shop;

class Answer {
    static function make() {
        $found = ["port" => getenv("APP_PORT"), "release" => getenv("APP_RELEASE")];
        $found["word"] = \\Ahoy\\Word::WORD;
        return $found + ["path" => strtok($_SERVER["REQUEST_URI"], "?")];
    }
}
""",
        "composer.json": json.dumps(
            {
                "name": "sea/shop",
                "require": {"sea/ahoy": "1.5.0"},
                "config": {"secure-http": False},
                "autoload": {"psr-4": {"Shop\\": "src/"}},
            }
        ),
        "composer.lock": json.dumps(
            {
                "packages": [
                    {
                        "name": "sea/ahoy",
                        "version": "1.5.0",
                        "type": "library",
                        "dist": {"type": "zip", "url": "URL/ahoy.zip"},
                        "autoload": {"psr-4": {"Ahoy\\": "src/"}},
                    }
                ],
                "packages-dev": [],
            }
        ),
    },
    "lua": {
        "app.lua": """
return function(env)
  local text = '{"port": "%s", "release": "%s", "word": "ahoy from Lua", "path": "%s"}'
  local body = text:format(os.getenv("APP_PORT"), os.getenv("APP_RELEASE"), env.PATH_INFO)
  return 200, {["Content-Type"] = "application/json"},
    coroutine.wrap(function() coroutine.yield(body) end)
end
""",
    },
}


def documented(*words: str) -> dict[str, Any]:
    """The settings in docs/frameworks.md that begin with these words."""
    page = (ROOT / "docs/frameworks.md").read_text()
    (code,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if all(word in block for word in words)
    )
    found: dict[str, Any] = {}
    exec(code, {}, found)  # our own
    return found


SETTINGS = {
    language: documented(f'app_type = "{kind}"')
    for language, kind in {"perl": "psgi", "ruby": "rack", "php": "php", "lua": "lua"}.items()
}
# What is installed is found by commands too.
SETTINGS["ruby"]["app_build"] = ["bundle exec ruby -e 'require \"ahoy\"; puts Ahoy.word' >built"]
PHP_FOLDER = documented("php-fallback")
