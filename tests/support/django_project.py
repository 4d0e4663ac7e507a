"""A project as Django's own command makes it, with an app that has a table, and migrations."""

import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

SETTINGS = """
import os
SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["*"]
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
INSTALLED_APPS.append("log")
"""
URLS = """
from django.http import HttpResponse, JsonResponse
from log.models import Entry
urlpatterns.append(path("healthz", lambda request: HttpResponse("well")))
urlpatterns.append(path("entries", lambda request: HttpResponse(Entry.objects.count())))
"""
MODELS = """
from django.db import models

class Entry(models.Model):
    text = models.TextField()
"""
FIRST = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = []
    operations = [
        migrations.CreateModel("Entry", [
            ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False,
                                       verbose_name="ID")),
            ("text", models.TextField()),
        ]),
    ]
"""
NEXT = """
from django.db import migrations, models

def sail(apps, schema_editor):
    {code}

class Migration(migrations.Migration):
    dependencies = [("log", "{before}")]
    operations = [{operations}migrations.RunPython(sail)]
"""


class DjangoProject:
    """`folder` is its own; `settings` are those that it is deployed with."""

    def __init__(self, top: Path) -> None:
        """
        :param top: an empty folder, in which it is made, and beside it what it takes for that
        """
        self.folder = top / "site"
        install = [
            find_uv_bin(),
            "pip",
            "install",
            "--system-certs",
            "--quiet",
            "--target",
            top / "d",
        ]
        subprocess.run([*install, "--python", sys.executable, "django"], check=True)
        make = [sys.executable, "-m", "django", "startproject", "mysite", self.folder]
        self.folder.mkdir()
        subprocess.run(make, check=True, env={"PYTHONPATH": str(top / "d")})
        (top / "secrets.env").write_text("SECRET_KEY=rum-in-the-hold\n")
        self.settings = {
            "app_source": str(self.folder),
            "app_root": ".",
            "app_entry_point": "mysite.wsgi:application",
            "app_requirements": "requirements.txt",
            "app_ini": None,
            "app_env": {},
            "app_secrets": ["SECRET_KEY"],
            "app_secrets_file": str(top / "secrets.env"),
            "app_release": ["python manage.py migrate --noinput"],
            "min_healthy_time": 0,
        }
        self.write("requirements.txt", "django\n")
        self.write("mysite/settings.py", SETTINGS)
        self.write("mysite/urls.py", URLS)
        self.write("log/__init__.py", "")
        self.write("log/models.py", MODELS)
        self.write("log/migrations/__init__.py", "")
        self.write("log/migrations/0001_first.py", FIRST)
        self.write("static/note.txt", "well\n")

    def write(self, path: str, text: str) -> None:
        """At the end of a file of it."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.folder / path).open("a") as file:
            file.write(text)

    def migration(self, name: str, before: str, code: str, operations: str = "") -> None:
        """One more, behind another.

        :param code: a line of Python that it runs
        :param operations: what it does before, each with a comma
        """
        self.write(
            f"log/migrations/{name}.py",
            NEXT.format(code=code, before=before, operations=operations),
        )
