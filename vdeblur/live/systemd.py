"""A systemd unit for a command line, which starts a camera with the machine and restarts it.

Addresses with a password go into an environment file that only root can read: all users can read a
unit, and the command line of a process. Knows nothing of video.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vdeblur.system.masking import masked, secret

ENVIRONMENT = "/etc/vdeblur/camera.env"


def unit(arguments: Sequence[str]) -> str:
    """Return the unit that runs `vdeblur camera` with these arguments, without `--service`."""
    words, hidden = [], []
    for argument in arguments:
        if argument == "--service":
            continue
        if secret(argument):
            hidden.append(argument)
            option, equals, _ = argument.partition("=")
            name = f"env:VDEBLUR_CAMERA_{len(hidden)}"
            words.append(f"{option}={name}" if option.startswith("-") and equals else name)
        else:
            words.append(argument)
    program = [sys.executable, "-m", "vdeblur", "camera", *words]
    lines = ["# Save as /etc/systemd/system/vdeblur-camera.service, then:"]
    lines += ["#   systemctl daemon-reload && systemctl enable --now vdeblur-camera"]
    if hidden:
        lines += [f"# Put the addresses with passwords into {ENVIRONMENT} (chmod 600):"]
        lines += [f"#   VDEBLUR_CAMERA_{n}={masked(a)}" for n, a in enumerate(hidden, 1)]
    lines += [
        "[Unit]",
        "Description=vdeblur: live deblurring",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(_quoted(word) for word in program)}",
        f"WorkingDirectory={Path.cwd()}",
    ]
    if hidden:
        lines.append(f"EnvironmentFile={ENVIRONMENT}")
    lines += [
        "Restart=always",
        "RestartSec=5",
        # Like Ctrl-C: files are finished before it ends.
        "KillSignal=SIGINT",
        "SuccessExitStatus=130",
        "TimeoutStopSec=30",
        "Nice=-5",
        "NoNewPrivileges=true",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines)


def _quoted(word: str) -> str:
    """Quote a word for ExecStart, where % and $ have a meaning."""
    word = word.replace("%", "%%").replace("$", "$$")
    return word if shlex.quote(word) == word else '"' + word.replace('"', '\\"') + '"'
