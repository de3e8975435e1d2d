"""An example: a login service with encrypted second factors, on the standard library's HTTP server and SQLAlchemy.

    DATABASE_URL=postgresql+psycopg://app@db/clinic KEYRING=file:/etc/clinic/keyring.json python -m backupd.example --port 8080

`models.py` is what an application takes from `backupd.columns`: some ten lines. `accounts.py` uses it: registration, enrolment,
login. `web.py` speaks HTTP. With `--moving` it reads a table whose secrets are partly still in clear, as while
`backupd columns encrypt` is at work. What a service on the Internet needs besides: TLS, and a limit on guesses.
"""
