"""A database with one of everything that a backup must bring back; `build` makes it, as small or as large as a test wants.

Nothing in it is random or depends on the server's major: two builds of one size hold the same rows.
Needs a superuser, for its roles and extensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

EXTENSIONS = ("citext", "hstore", "pgcrypto")
ODD_NAMES = ('Quoted "Table"', "naïve Straße", "日本語の表", "select", "with space", "json", "semi;colon--", "back\\slash", "t")


@dataclass(frozen=True, slots=True)
class Zoo:
    """What was built: the roles are the cluster's, so they carry a prefix that keeps builds of one cluster apart."""

    owner: str
    reader: str
    group: str
    passwords: dict[str, str]
    tables: int

    @property
    def roles(self) -> tuple[str, ...]:
        return self.owner, self.reader, self.group


def build(connection: psycopg.Connection[Any], *, tables: int = 300, big_mb: int = 200, prefix: str = "zoo") -> Zoo:
    """Fill the database. `tables` is how many plain tables, `big_mb` the size of one table's random bytes in 10^6 bytes.

    `connection` must be in autocommit mode.
    """
    zoo = _roles(connection, prefix, tables)
    for statements in (_TYPES, _SECOND_FACTORS, _PARTITIONS, _DEPENDENT, _LARGE_OBJECTS, _SEQUENCES):
        for statement in statements.split(";\n\n"):
            if statement.strip():
                connection.execute(statement.encode())
    _odd_names(connection)
    _many_tables(connection, tables)
    _big(connection, big_mb)
    _rights(connection, zoo)
    return zoo


def drop_roles(connection: psycopg.Connection[Any], prefix: str = "zoo") -> None:
    """Remove a zoo's roles from the cluster, once no database holds anything of theirs."""
    for role in _role_names(prefix):
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


_TYPES = '''
CREATE EXTENSION citext;

CREATE EXTENSION hstore;

CREATE SCHEMA "Odd Schema";

CREATE EXTENSION pgcrypto WITH SCHEMA "Odd Schema";

CREATE TYPE mood AS ENUM ('sad', 'ok', 'très content', 'it''s');

ALTER TYPE mood ADD VALUE 'between' BEFORE 'ok';

CREATE TYPE "Odd Schema".address AS (street text, "house No" int);

CREATE DOMAIN positive AS int CHECK (VALUE > 0);

CREATE DOMAIN "Odd Schema"."e-mail" AS citext CHECK (VALUE ~ '@');

CREATE TYPE tension AS RANGE (subtype = float8);

CREATE FUNCTION doubled(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';

CREATE TABLE everything (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  serial_no serial,
  feeling mood DEFAULT 'ok',
  amount positive,
  mail "Odd Schema"."e-mail",
  home "Odd Schema".address,
  twice int GENERATED ALWAYS AS (amount * 2) STORED,
  f4 real, f8 double precision, n numeric, m money, b boolean,
  at timestamptz, day date, span interval, local timestamp,
  raw bytea, doc json, docb jsonb, tags text[], pairs hstore, ip inet, uid uuid, bits bit varying, spot point, words tsvector,
  rng tension, kind regclass, x xml, "Ünïcode ""column""" text, c "char");

INSERT INTO everything (amount, mail, home, feeling, f4, f8, n, m, b, at, day, span, local, raw, doc, docb, tags, pairs, ip,
  uid, bits, spot, words, rng, kind, x, "Ünïcode ""column""", c)
SELECT i, 'user' || i || '@Example.org', ROW('Straße ' || i, i)::"Odd Schema".address, (enum_range(NULL::mood))[1 + i % 5],
  CASE i % 4 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' ELSE i / 3.0 END, i * 1.1e-300,
  i * 98765432109876543210.0123456789, i * 1.5, i % 2 = 0,
  '2024-03-31 00:30:00+00'::timestamptz + i * interval '17 minutes', '0044-03-15 BC'::date + i, i * interval '1 day 3:04:05.6',
  '2026-10-25 02:30:00'::timestamp + i * interval '1 hour', decode(md5(i::text), 'hex'), '{"a": 1, "a":   2}',
  '{"b": [1, null]}', ARRAY['x', NULL, 'with "quote" and \\ and , {}'], 'a=>1, b=>NULL', '2001:db8::1', md5(i::text)::uuid,
  '10110', point(i, -i),
  to_tsvector('simple', 'the quick brown fox ' || i), tension(0, i), 'pg_class', '<a b="1">ü</a>',
  CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE E'tab\\tline\\nback\\\\slash \\u20ac' END, 'q'
FROM generate_series(1, 200) i;

ALTER TABLE everything ADD COLUMN gone text DEFAULT 'x';

ALTER TABLE everything DROP COLUMN gone;

CREATE TABLE empty (id int PRIMARY KEY, note text);

CREATE TABLE no_columns ();

INSERT INTO no_columns DEFAULT VALUES;

CREATE UNLOGGED TABLE unlogged (id int);

INSERT INTO unlogged VALUES (1), (2)
'''

_SECOND_FACTORS = """
CREATE TABLE users (
  id int PRIMARY KEY, name text NOT NULL, is_totp_enabled boolean NOT NULL DEFAULT false, totp_secret bytea);

INSERT INTO users SELECT i, 'user ' || i, i % 2 = 0, CASE WHEN i % 2 = 0 THEN decode(md5('seed' || i), 'hex') END
FROM generate_series(1, 100) i;

ALTER TABLE users ENABLE ROW LEVEL SECURITY;

ALTER TABLE users FORCE ROW LEVEL SECURITY;

CREATE POLICY own_row ON users USING (name = current_user)
"""

_PARTITIONS = """
CREATE TABLE visits (id int, "when" date NOT NULL, note text, PRIMARY KEY (id, "when")) PARTITION BY RANGE ("when");

CREATE TABLE visits_2025 PARTITION OF visits FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');

CREATE TABLE visits_2026 (note text, "when" date NOT NULL, id int NOT NULL);

ALTER TABLE visits ATTACH PARTITION visits_2026 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');

CREATE TABLE visits_rest PARTITION OF visits DEFAULT PARTITION BY HASH (id);

CREATE TABLE visits_rest_0 PARTITION OF visits_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);

CREATE TABLE visits_rest_1 PARTITION OF visits_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);

INSERT INTO visits SELECT i, '2024-06-01'::date + i, 'visit ' || i FROM generate_series(1, 900) i;

CREATE TABLE feelings (who int, feeling mood) PARTITION BY HASH (feeling);

CREATE TABLE feelings_0 PARTITION OF feelings FOR VALUES WITH (MODULUS 2, REMAINDER 0);

CREATE TABLE feelings_1 PARTITION OF feelings FOR VALUES WITH (MODULUS 2, REMAINDER 1);

INSERT INTO feelings SELECT i, (enum_range(NULL::mood))[1 + i % 5] FROM generate_series(1, 100) i;

CREATE TABLE parent (id int, note text);

CREATE TABLE child (own text) INHERITS (parent);

ALTER TABLE parent ADD COLUMN later text DEFAULT 'later';

INSERT INTO parent VALUES (1, 'parent', 'p');

INSERT INTO child (id, note, own, later) VALUES (2, 'child', 'own', 'l'), (3, 'child', NULL, NULL)
"""

_DEPENDENT = """
CREATE TABLE orders (id int PRIMARY KEY, visitor int REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED, doubled int);

CREATE INDEX ON orders (doubled(id));

CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN NEW.doubled := doubled(NEW.id); RETURN NEW; END $body$;

CREATE TRIGGER fill BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fill();

INSERT INTO orders SELECT i, 1 + i % 100, 0 FROM generate_series(1, 500) i;

CREATE VIEW busy AS SELECT visitor, count(*) FROM orders GROUP BY visitor;

CREATE MATERIALIZED VIEW summary AS SELECT visitor, count(*) AS orders FROM orders GROUP BY visitor;

CREATE UNIQUE INDEX ON summary (visitor);

CREATE MATERIALIZED VIEW "never filled" AS SELECT 1 AS one WITH NO DATA;

INSERT INTO orders VALUES (1000, 1, 0);

COMMENT ON TABLE orders IS 'a comment with ''quotes'' and ü';

CREATE STATISTICS related ON id, visitor FROM orders
"""

_LARGE_OBJECTS = """
SELECT lo_from_bytea(910000 + i, decode(repeat(md5(i::text), i), 'hex')) FROM generate_series(1, 20) i;

SELECT lo_from_bytea(900001, decode(repeat(md5('large'), 160000), 'hex'));

SELECT lo_create(900002);

COMMENT ON LARGE OBJECT 900001 IS 'larger than two pages'
"""

_SEQUENCES = """
CREATE SEQUENCE untouched;

CREATE SEQUENCE "Odd Schema"."Counter" START 1000 INCREMENT 7;

SELECT nextval('"Odd Schema"."Counter"') FROM generate_series(1, 5);

CREATE SEQUENCE downwards INCREMENT -3 MAXVALUE 100 START 50;

SELECT nextval('downwards') FROM generate_series(1, 40);

CREATE SEQUENCE huge AS bigint;

SELECT setval('huge', 9223372036854775806)
"""


def _role_names(prefix: str) -> tuple[str, str, str]:
    return f"{prefix}_Owner", f"{prefix} reader's", f"{prefix}_group"


def _roles(connection: psycopg.Connection[Any], prefix: str, tables: int) -> Zoo:
    owner, reader, group = _role_names(prefix)
    passwords = {owner: f"pw-{prefix}-owner-Qx7", reader: f"pw-{prefix}-'reader'\\7"}
    for role, attributes in ((owner, "LOGIN CREATEDB"), (reader, "LOGIN CONNECTION LIMIT 7"), (group, "NOLOGIN")):
        connection.execute(sql.SQL("CREATE ROLE {} {}").format(sql.Identifier(role), sql.SQL(attributes)))
    for role, password in passwords.items():
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))
    connection.execute(sql.SQL("GRANT {} TO {} WITH ADMIN OPTION").format(sql.Identifier(group), sql.Identifier(owner)))
    connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(reader)))
    connection.execute(sql.SQL("ALTER ROLE {} SET search_path TO 'Odd Schema', public").format(sql.Identifier(reader)))
    connection.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(owner), sql.Literal("owns; it's\ntwo lines")))
    return Zoo(owner, reader, group, passwords, tables)


def _odd_names(connection: psycopg.Connection[Any]) -> None:
    for number, name in enumerate(ODD_NAMES):
        table = sql.Identifier("Odd Schema", name)
        connection.execute(sql.SQL('CREATE TABLE {} (t int, "t.*" text, "Größe %" text)').format(table))
        connection.execute(
            sql.SQL("INSERT INTO {} SELECT i, 'row ' || i, repeat('ß', i) FROM generate_series(1, {}) i").format(
                table, number + 1
            )
        )


def _many_tables(connection: psycopg.Connection[Any], count: int) -> None:
    for start in range(0, count, 100):
        connection.execute(
            sql.SQL(
                "DO $$ BEGIN FOR i IN {}..{} LOOP"
                " EXECUTE format('CREATE TABLE plain_%s (id serial PRIMARY KEY, note text)', i);"
                " EXECUTE format('INSERT INTO plain_%s (note) SELECT md5(n::text) FROM generate_series(1, %s) n', i, i %% 17);"
                " END LOOP; END $$".replace("%%", "%")
            ).format(sql.Literal(start + 1), sql.Literal(min(start + 100, count)))
        )


def _big(connection: psycopg.Connection[Any], megabytes: int) -> None:
    """Incompressible bytes: rows of 32 kB, each 1,000 SHA-256 sums of a counter."""
    connection.execute("CREATE TABLE big (id int PRIMARY KEY, body bytea NOT NULL)")
    connection.execute("ALTER TABLE big ALTER body SET STORAGE EXTERNAL")
    connection.execute(
        "INSERT INTO big SELECT i, (SELECT string_agg(sha256((i || ':' || j)::bytea), '' ORDER BY j)"
        f" FROM generate_series(1, 1000) j) FROM generate_series(1, {megabytes * 1_000_000 // 32_000}) i"
    )


def _rights(connection: psycopg.Connection[Any], zoo: Zoo) -> None:
    owner, reader, group = (sql.Identifier(role) for role in zoo.roles)
    for statement, roles in (
        ("ALTER TABLE everything OWNER TO {}", (owner,)),
        ("ALTER TABLE visits OWNER TO {}", (owner,)),
        ('ALTER SCHEMA "Odd Schema" OWNER TO {}', (owner,)),
        ("ALTER LARGE OBJECT 900001 OWNER TO {}", (owner,)),
        ("GRANT SELECT ON LARGE OBJECT 900002 TO {}", (reader,)),
        ("GRANT SELECT (id, name) ON users TO {}", (reader,)),
        ("GRANT SELECT, INSERT ON orders TO {} WITH GRANT OPTION", (group,)),
        ("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {}", (group,)),
        ("GRANT CREATE ON SCHEMA public TO {}", (owner,)),
    ):
        connection.execute(sql.SQL(statement).format(*roles))
