"""Real servers for tests: each file is one pytest plugin that owns one kind of server.

Servers start when a test first asks for one, listen on 127.0.0.1 alone, live in a directory of their own and end with the
test session. Every xdist worker has its own.
"""

PLUGINS = (
    "tests.parts.surroundings",
    "tests.parts.postgres",
    "tests.parts.s3",
    "tests.parts.azure",
    "tests.parts.openbao",
    "tests.parts.key_vault",
    "tests.parts.proxy",
    "tests.parts.containers",
    "tests.leak_watch",
)
