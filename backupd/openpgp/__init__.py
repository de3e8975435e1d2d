"""OpenPGP through gpg: keys, sealed streams, signed texts. Only this room runs gpg, and but for one step in a private `Home`.

`home.py` is the private GNUPGHOME, `agent.py` the gpg-agent in it, `keys.py` looks at keys and makes them, `messages.py` seals
and unseals streams, `cleartext.py` signs and verifies texts, `packets.py` reads the few packets that gpg's word alone is not
enough for, `session_keys.py` takes a message's session key out of its head, `own_home.py` is a custodian's own GNUPGHOME.
GnuPG 2.2 and 2.4.
"""

from backupd.openpgp.home import Home, version

__all__ = ["Home", "version"]
