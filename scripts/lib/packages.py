"""The distribution's packages: installed when missing, downloaded without installing, and looked up by name.

Nothing here names a mirror. A suite that the machine lacks is read from the same mirror that it already uses,
pinned below everything else, so that only packages asked for by suite come from it."""

import glob
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from report import Failure, run, step

# Below 100, apt never upgrades to, or picks, a package of such a suite unless it is asked for.
PIN = 50


@cache
def release():
    """`/etc/os-release` as a dictionary."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        text = ""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: value.strip().strip('"') for key, value in pairs}


def is_ubuntu():
    return release().get("ID") == "ubuntu"


def codename():
    """`bookworm`, `trixie`, `noble`..."""
    return release().get("VERSION_CODENAME", "")


def as_root(command):
    """`command`, through sudo unless this is root already."""
    if os.geteuid() == 0:
        return list(command)
    if not any(os.access(f"{folder}/sudo", os.X_OK) for folder in ("/usr/bin", "/bin", "/usr/local/bin")):
        raise Failure(f"`{command[0]}` has to run as root: run this as root, or install sudo")
    return ["sudo", *command]


def missing(names):
    """Those of `names` that are not installed. Takes milliseconds."""
    result = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in result.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def ensure(names, suite=None):
    """Installs those of `names` that are missing, from `suite` when one is given."""
    wanted = missing(names)
    if not wanted:
        return
    _need_apt(wanted)
    if suite:
        ensure_suite(suite)
    target = ["-t", suite] if suite else []
    with step("installing " + " ".join(wanted)):
        try:
            _install([*target, *wanted])
        except Failure:
            # Package lists of an image are often older than the mirror: refresh them once.
            update()
            _install([*target, *wanted])


def program(name, package):
    """The path of a program of an installed package; those for administrators are not on an ordinary user's PATH."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Failure(f"{name} is missing: install the package {package}")
    return found


def renew(names):
    """Installs the newest of `names` that the mirror has."""
    _need_apt(names)
    with step("looking for newer " + " ".join(names)):
        update()
        _install(names)


def _install(words):
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", "--no-install-recommends"]
    run(as_root([*command, "-o", "DPkg::Lock::Timeout=600", *words]), "installing packages")


def update():
    """Refreshes the package lists."""
    run(as_root(["apt-get", "update", "-q", "-o", "DPkg::Lock::Timeout=600"]), "refreshing package lists")


def ensure_suite(suite):
    """Makes `suite` known to apt, from this machine's own mirror, pinned low."""
    if any(suite in entry["suites"] for entry in sources()):
        return
    entry = main_source()
    options = f"Signed-By: {entry['signed-by']}\n" if entry["signed-by"] else ""
    text = f"Types: deb\nURIs: {entry['uri']}\nSuites: {suite}\nComponents: main\n{options}"
    pin = f"Package: *\nPin: release n={suite}\nPin-Priority: {PIN}\n"
    with step(f"adding the suite {suite}"):
        _write_as_root(f"/etc/apt/preferences.d/vivarium-{suite}", pin)
        _write_as_root(f"/etc/apt/sources.list.d/vivarium-{suite}.sources", text)
        update()


def names(pattern):
    """Package names that match a regular expression, oldest version first."""
    prefix = re.match(r"[a-z0-9.-]*", pattern.replace("\\.", "."))[0]
    known = _package_names(prefix)
    if not known:
        with step("refreshing package lists"):
            update()
        known = _package_names(prefix)
    return sorted(filter(re.compile(pattern + r"\Z").match, known), key=version_order)


def depends(name):
    """What the package's newest version depends on, in one line; empty when apt does not know the package."""
    if not _package_names(name):
        with step("refreshing package lists"):
            update()
    if name not in _package_names(name):
        return ""
    shown = run(["apt-cache", "show", "--no-all-versions", name], f"asking what {name} depends on")
    return " ".join(line for line in shown.splitlines() if line.startswith("Depends:"))


def version_order(name):
    """Sorts `6.1.0-9` before `6.1.0-10`."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", name)]


def download(name, folder, architecture=None):
    """Downloads the package's file into `folder`, without installing it, and returns its path. `architecture`: one that apt
    knows besides this machine's own."""
    _need_apt([name])
    # apt would drop to its own user for the download, which may not write here; as root it must be told.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    command = ["apt-get", "download", "-q", *sandbox, f"{name}:{architecture}" if architecture else name]
    try:
        run(command, f"downloading {name}", cwd=folder)
    except Failure:
        update()
        run(command, f"downloading {name}", cwd=folder)
    found = sorted(glob.glob(f"{folder}/{name}_*.deb"), key=os.path.getmtime)
    if not found:
        raise Failure(f"downloading {name}: apt-get reported success but left no file in {folder}")
    return Path(found[-1])


def sources():
    """The machine's binary package sources: dictionaries with `uri`, `suites`, `signed-by`, `components`."""
    found = []
    for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*.list"))]:
        found += _one_line_sources(_read(path))
    for path in sorted(glob.glob("/etc/apt/sources.list.d/*.sources")):
        found += _deb822_sources(_read(path))
    return found


def _one_line_sources(text):
    entries = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)", line.split("#")[0])
        if match:
            options = dict(pair.split("=", 1) for pair in (match[1] or "").split() if "=" in pair)
            entries.append(
                {
                    "uri": match[2],
                    "suites": [match[3]],
                    "components": match[4].split(),
                    "signed-by": options.get("signed-by", ""),
                }
            )
    return entries


def _deb822_sources(text):
    entries = []
    # A stanza may hold comment lines anywhere: they are no stanza breaks.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields, last = {}, None
        for line in stanza.splitlines():
            if line[:1].isspace() and last:
                fields[last] += "\n" + line
            elif ":" in line:
                last, value = line.split(":", 1)
                last = last.strip().lower()
                fields[last] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off", "without", "disable")
        if enabled and "deb" in fields.get("types", "").split():
            for uri in fields.get("uris", "").split():
                entries.append(
                    {
                        "uri": uri,
                        "suites": fields.get("suites", "").split(),
                        "components": fields.get("components", "").split(),
                        "signed-by": fields.get("signed-by", ""),
                    }
                )
    return entries


def main_source():
    """The entry that the release itself comes from."""
    for entry in sources():
        if codename() in entry["suites"] and "main" in entry["components"]:
            return entry
    raise Failure(f"no apt source offers the suite `{codename()}` with component main: check /etc/apt/sources.list*")


def _package_names(prefix):
    if not Path("/usr/bin/apt-cache").exists():
        raise Failure("apt is missing: this needs Debian or Ubuntu")
    return run(["apt-cache", "pkgnames", prefix], "listing packages").split()


def _need_apt(names_wanted):
    if not Path("/usr/bin/apt-get").exists():
        raise Failure(f"not a Debian or Ubuntu machine: install by hand what {' '.join(names_wanted)} would provide")


def _read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _write_as_root(path, text):
    run(as_root(["tee", path]), f"writing {path}", input=text)
