"""A secret that a test holds in its hand, where a login wants one from another custodian."""

from dataclasses import dataclass, field

from backupd.redact import Secret


@dataclass
class InHand:
    """`text` may be changed, as a file is."""

    text: str = field(repr=False)
    locator: str = "file:/run/backupd/token"

    def fetch(self) -> Secret:
        return Secret(self.text, self.locator)
