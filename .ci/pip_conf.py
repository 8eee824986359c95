"""Print a pip.conf for containers from this machine's: a container reaches no folder of it, only what is served.

`pip_conf.py URL` replaces folders of wheels by URL, at which `.ci/images` serves the first of them; `pip_conf.py`
prints that folder's name.
"""

import ast
import subprocess
import sys


def settings() -> dict[str, str]:
    """pip's own settings by their plain names; those of the environment come last and win."""
    lines = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pairs = [line.partition("=") for line in lines if "=" in line]
    return {key.rpartition(".")[2]: ast.literal_eval(value) for key, _, value in pairs}


def folders(places: str) -> list[str]:
    return [place for place in places.split() if "://" not in place]


def main() -> None:
    found = settings()
    wheels = found.get("find-links", "")
    if len(sys.argv) == 1:
        print(*folders(wheels)[:1])
        return
    lines = [f"{key} = {found[key]}" for key in ("index-url", "proxy", "trusted-host") if key in found]
    urls = [url for url in found.get("extra-index-url", "").split() if url.startswith("http")]
    if urls:
        lines.append("extra-index-url = " + " ".join(urls))
    if folders(wheels):
        lines.append(f"find-links = {sys.argv[1]}")
    print("[global]", "cert = /etc/ssl/certs/ca-certificates.crt", "timeout = 180", *lines, sep="\n")


if __name__ == "__main__":
    main()
