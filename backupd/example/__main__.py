"""Start the service: settings from the environment and the command line, keys before the first request."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from sqlalchemy import create_engine

from backupd.errors import BackupdError
from backupd.example.accounts import Accounts
from backupd.example.models import MovingBase, MovingUser, SealedBase, SealedUser, keys
from backupd.example.web import server


def main() -> int:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(
        prog="python -m backupd.example", description="DATABASE_URL and KEYRING are in the environment."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one, which is printed")
    parser.add_argument("--moving", action="store_true", help="the table still has secrets in clear, in totp_secret")
    parser.add_argument("--scrypt-log2n", type=int, default=15, help="the cost of passwords hashed from now on (15: 32 MiB)")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        keys.load()  # without keys it does not start: better now than at the first login
    except BackupdError as error:
        print(f"{error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    # An error of SQLAlchemy's prints the parameters of its statement, such as password hashes.
    engine = create_engine(os.environ["DATABASE_URL"], hide_parameters=True, pool_pre_ping=True)
    base, model = (MovingBase, MovingUser) if arguments.moving else (SealedBase, SealedUser)
    base.metadata.create_all(engine)
    serving = server(Accounts(engine, model, arguments.scrypt_log2n), arguments.host, arguments.port)
    print(f"http://{arguments.host}:{serving.server_port}", flush=True)
    try:
        serving.serve_forever()
    except KeyboardInterrupt:
        serving.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
