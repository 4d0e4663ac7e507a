# make_venv PYTHON FOLDER: a virtual environment with what `python -m venv` puts into it. That has
# pip install pip and setuptools and compile all of them, 5 s of a processor for each release; they
# are unpacked here, and what is used of them is compiled then. Where a distribution has other ways,
# it makes the environment by itself.
make_venv() {
    "$1" -m venv --clear --without-pip "$2" && "$2/bin/python" -I - 2>/dev/null <<'PYTHON' || "$1" -m venv --clear "$2"
import compileall, ensurepip, glob, os, sys, sysconfig, zipfile

places = [os.path.join(os.path.dirname(ensurepip.__file__), "_bundled")]
places.append(sysconfig.get_config_var("WHEEL_PKG_DIR") or places[0])
names = ["pip"] if sys.version_info >= (3, 12) else ["pip", "setuptools"]
found = [{each for place in places for each in glob.glob(f"{place}/{name}-*.whl")} for name in names]
site = sysconfig.get_path("purelib")
for (wheel,) in found:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
# An application may need these, and can't keep what it compiles.
for name in ("_distutils_hack", "pkg_resources"):
    compileall.compile_dir(f"{site}/{name}", quiet=2)
program = f"#!{sys.executable}\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"
for name in ("pip", "pip3", f"pip3.{sys.version_info[1]}"):
    path = os.path.join(os.path.dirname(sys.executable), name)
    with open(path, "w") as opened:
        opened.write(program)
    os.chmod(path, 0o755)
PYTHON
}
