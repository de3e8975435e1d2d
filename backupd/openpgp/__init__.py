"""OpenPGP through gpg: keys, sealed streams, signed texts. Only this room runs gpg, and only in a private `Home`.

`home.py` is the private GNUPGHOME, `keys.py` looks at keys and makes them, `messages.py` seals and unseals streams,
`cleartext.py` signs and verifies texts, `packets.py` reads the few packets that gpg's word alone is not enough for. GnuPG
2.2 and 2.4.
"""

from backupd.openpgp.home import Home, version

__all__ = ["Home", "version"]
