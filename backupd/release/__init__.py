"""The release of one backup's session keys: a custodian opens this backup for somebody, and keeps the key that opens all.

    host that restores                          custodian, maybe offline
    request.ask ── request file ──────────────▶ request.prove, and a look at what is asked
    one-time key stays                          answer.give, with the long-lived key
    answer.accept ◀── release, sealed to it ─── and a record

`request.py` is the file that asks and what it proves, `answer.py` the file that answers. Neither reads a configuration: the
custodian's host has none. Session keys are never written but sealed to the one-time key of the request.
"""

from backupd.release.answer import Given, accept, give
from backupd.release.request import Proved, Request, ask, prove, read

__all__ = ["Given", "Proved", "Request", "accept", "ask", "give", "prove", "read"]
