"""Encrypted attributes of SQLAlchemy models, on PostgreSQL: bound to their rows, and in clear nowhere outside of Python."""

import enum
import logging
import pickle
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from cryptography.fernet import Fernet
from sqlalchemy import (
    CHAR,
    UUID,
    VARCHAR,
    BigInteger,
    Column,
    Date,
    Engine,
    Enum,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    declared_attr,
    defer,
    load_only,
    make_transient,
    mapped_column,
    registry,
    relationship,
    undefer,
    validates,
)
from sqlalchemy.schema import CreateTable

from backupd.columns import Cell, ColumnError, Malformed, NotAuthentic, RetiredKey, UnknownKey
from backupd.columns.aes_gcm import AesGcm, key_id
from backupd.columns.fernet import FernetCipher
from backupd.columns.keyring import FernetKeys, Keyring
from backupd.columns.sqlalchemy import ModelError, NoRowId, NotComparable, NotLoadable, sealed
from backupd.redact import Secret
from tests.leak_watch import Planted
from tests.parts.postgres import Database

KEYS = AesGcm(Keyring.generate("2026-1"))
FERNET_KEY = Fernet.generate_key()
FERNET = FernetCipher(FernetKeys.parse(Secret(FERNET_KEY)))


class Base(DeclarativeBase):
    pass


class Numbered(Base):
    """The database makes the id, and takes none from others."""

    __tablename__ = "numbered"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    totp_secret_sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    totp_secret = sealed("totp_secret_sealed", KEYS)


class Known(Base):
    """The application makes the id."""

    __tablename__ = "known"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    totp_secret_sealed: Mapped[bytes | None]
    totp_secret = sealed("totp_secret_sealed", KEYS)


class Required(Base):
    """Named by a text, with a column that is never NULL, in the database under another name, in a table called otherwise."""

    __tablename__ = "required"
    name: Mapped[str] = mapped_column(primary_key=True)
    sealed_bytes: Mapped[bytes] = mapped_column("secret")
    secret = sealed("sealed_bytes", KEYS, table="clinic.required")


class Moving(Base):
    """Half way from plaintext or Fernet."""

    __tablename__ = "moving"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    totp_plain: Mapped[str | None] = mapped_column("totp_secret", String(140))
    totp_secret_sealed: Mapped[bytes | None]
    totp_secret = sealed("totp_secret_sealed", KEYS, former="totp_plain", read_former=FERNET.decrypt)


class TwoFactors:
    """A mixin, with two sealed attributes at once."""

    first_sealed: Mapped[bytes | None]
    second_sealed: Mapped[bytes | None]
    first = sealed("first_sealed", KEYS)
    second = sealed("second_sealed", KEYS)


class Person(TwoFactors, Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012  as SQLAlchemy has it


class Doctor(Person):
    __tablename__ = "doctor"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    pin_sealed: Mapped[bytes | None]
    pin = sealed("pin_sealed", KEYS)
    __mapper_args__ = {"polymorphic_identity": "doctor"}  # noqa: RUF012  as SQLAlchemy has it


class Owner(Base):
    """Several second factors each, which the application reaches by their owner."""

    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)
    devices: Mapped[list["Device"]] = relationship(order_by="Device.id")


class Device(Base):
    __tablename__ = "device"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("owner.id"))
    totp_secret_sealed: Mapped[bytes | None]
    totp_secret = sealed("totp_secret_sealed", KEYS)


class Seen:
    """All that went to the database: statements and parameters, as events and as the echo log has them."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.everything = ""

    def __call__(self, _: Any, __: Any, statement: str, parameters: Any, ___: Any, ____: Any) -> None:
        self.statements.append(statement)
        values = parameters if isinstance(parameters, list | tuple) else [parameters]
        for each in values:
            row = each.values() if isinstance(each, dict) else [each]
            self.everything += statement + "".join(str(getattr(value, "obj", value)) for value in row)


@pytest.fixture
def engine(database17: Database) -> Iterator[Engine]:
    engine = create_engine(database17.dsn.replace("postgresql://", "postgresql+psycopg://"), hide_parameters=False)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def seen(engine: Engine) -> Seen:
    seen = Seen()
    event.listen(engine, "before_cursor_execute", seen)
    return seen


def stored(engine: Engine, query: str) -> list[Any]:
    with engine.connect() as connection:
        return [
            tuple(bytes(each) if isinstance(each, memoryview) else each for each in row)
            for row in connection.execute(text(query))
        ]


# ----------------------------------------------------------------------------------------------------- writing and reading


def test_a_secret_goes_in_and_comes_out_and_the_database_has_its_envelope(engine: Engine, planted: Planted) -> None:
    seed = Secret(planted.seed())
    with Session(engine) as session, session.begin():
        session.add(Numbered(email="a", totp_secret=seed))
    with Session(engine) as session:
        user = session.scalars(select(Numbered)).one()
        assert user.totp_secret == seed
        assert isinstance(user.totp_secret, Secret)
    [(row_id, value)] = stored(engine, "SELECT id, totp_secret_sealed FROM numbered")
    assert KEYS.decrypt(Cell("numbered", "totp_secret_sealed", str(row_id)), value) == seed


def test_what_was_assigned_is_read_back_at_once_before_and_after_the_flush(engine: Engine) -> None:
    seed, user = Secret("JBSWY3DPEHPK3PXP"), Numbered(email="a")
    assert user.totp_secret is None
    user.totp_secret = seed
    assert user.totp_secret == seed
    with Session(engine, expire_on_commit=False) as session:
        session.add(user)
        assert user.totp_secret == seed
        session.flush()
        assert user.totp_secret == seed
        session.commit()
        assert user.totp_secret == seed
    assert user.totp_secret == seed


def test_a_row_whose_id_the_database_makes_is_inserted_first_and_sealed_in_the_same_flush(engine: Engine, seen: Seen) -> None:
    with Session(engine) as session:
        session.add_all(Numbered(email=name, totp_secret=Secret(f"JBSWY3DPEHPK3PX{name}")) for name in "ABC")
        session.add(Numbered(email="none"))
        session.commit()
        for user in session.scalars(select(Numbered).where(Numbered.email != "none")):
            assert user.totp_secret == Secret(f"JBSWY3DPEHPK3PX{user.email}")
    verbs = [statement.split()[0] for statement in seen.statements]
    assert verbs == ["INSERT", "UPDATE", "UPDATE", "UPDATE", "SELECT"]


def test_a_row_with_an_id_of_the_applications_is_written_by_one_statement(engine: Engine, seen: Seen) -> None:
    given = uuid.uuid4()
    with Session(engine) as session:
        session.add(Known(totp_secret=Secret("JBSWY3DPEHPK3PXP"), id=given))
        session.commit()
    assert [statement.split()[0] for statement in seen.statements] == ["INSERT"]
    [(value,)] = stored(engine, "SELECT totp_secret_sealed FROM known")
    assert KEYS.decrypt(Cell("known", "totp_secret_sealed", str(given)), value) == Secret("JBSWY3DPEHPK3PXP")


def test_a_default_that_makes_the_id_within_the_insert_does_too(engine: Engine) -> None:
    with Session(engine) as session:
        user = Known(totp_secret=Secret("JBSWY3DPEHPK3PXP"))
        session.add(user)
        session.commit()
        assert user.totp_secret == Secret("JBSWY3DPEHPK3PXP")


def test_a_secret_is_changed_and_removed(engine: Engine) -> None:
    with Session(engine) as session:
        user = Numbered(email="a", totp_secret=Secret("AAAAAAAAAAAAAAAA"))
        session.add(user)
        session.commit()
        user.totp_secret = Secret("BBBBBBBBBBBBBBBB")
        session.commit()
        assert user.totp_secret == Secret("BBBBBBBBBBBBBBBB")
        user.totp_secret = None
        session.commit()
        assert user.totp_secret is None
    assert stored(engine, "SELECT totp_secret_sealed FROM numbered") == [(None,)]


def test_the_last_of_several_assignments_counts_also_before_the_insert(engine: Engine) -> None:
    with Session(engine) as session:
        first, second = Numbered(email="a", totp_secret=Secret("AAAAAAAAAAAAAAAA")), Numbered(email="b")
        first.totp_secret = None
        second.totp_secret = Secret("AAAAAAAAAAAAAAAA")
        second.totp_secret = Secret("BBBBBBBBBBBBBBBB")
        session.add_all([first, second])
        session.commit()
        assert first.totp_secret is None
        assert second.totp_secret == Secret("BBBBBBBBBBBBBBBB")


def test_what_is_not_touched_is_not_written(engine: Engine, seen: Seen) -> None:
    with Session(engine) as session:
        session.add(Numbered(email="a", totp_secret=Secret("AAAAAAAAAAAAAAAA")))
        session.commit()
        before = stored(engine, "SELECT totp_secret_sealed FROM numbered")
        user = session.scalars(select(Numbered)).one()
        assert user.totp_secret
        user.email = "b"
        seen.statements.clear()
        session.commit()
    assert "totp_secret_sealed" not in "".join(seen.statements)
    assert stored(engine, "SELECT totp_secret_sealed FROM numbered") == before


def test_mixins_and_joined_tables_have_their_own(engine: Engine) -> None:
    with Session(engine) as session:
        doctor = Doctor(first=Secret("first secret"), second=Secret("second secret"), pin=Secret("the pin"))
        session.add_all([Person(first=Secret("another's")), doctor])
        session.commit()
        assert (doctor.first, doctor.second, doctor.pin) == (Secret("first secret"), Secret("second secret"), Secret("the pin"))
    [(row_id, pin)] = stored(engine, "SELECT id, pin_sealed FROM doctor")
    assert KEYS.decrypt(Cell("doctor", "pin_sealed", str(row_id)), pin) == Secret("the pin")
    assert len(stored(engine, "SELECT FROM person WHERE first_sealed IS NOT NULL")) == 2


def test_the_names_are_those_of_the_database_and_the_tables_can_be_given(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Required(name="Ärztin 7", secret=Secret("the secret")))
        session.commit()
    [(value,)] = stored(engine, "SELECT secret FROM required")
    assert KEYS.decrypt(Cell("clinic.required", "secret", "Ärztin 7"), value) == Secret("the secret")


def test_merging_writes_what_was_assigned(engine: Engine) -> None:
    given = uuid.uuid4()
    with Session(engine) as session:
        session.merge(Known(id=given, totp_secret=Secret("AAAAAAAAAAAAAAAA")))
        session.merge(Numbered(email="a", totp_secret=Secret("BBBBBBBBBBBBBBBB")))
        session.commit()
        session.merge(Known(id=given, totp_secret=Secret("CCCCCCCCCCCCCCCC")))
        session.commit()
        assert session.scalars(select(Known)).one().totp_secret == Secret("CCCCCCCCCCCCCCCC")
        assert session.scalars(select(Numbered)).one().totp_secret == Secret("BBBBBBBBBBBBBBBB")


# ----------------------------------------------------------------------------------------------------------- ids that change


def test_an_object_that_was_rolled_back_and_is_added_again_is_sealed_for_its_new_row(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Numbered(email="taken"))
        session.commit()
        user = Numbered(email="a", totp_secret=Secret("AAAAAAAAAAAAAAAA"))
        session.add(user)
        session.flush()
        first_id = user.id
        session.rollback()
        assert user.totp_secret == Secret("AAAAAAAAAAAAAAAA")
        make_transient(user)
        user.id = None  # type: ignore[assignment]  # how a row is added anew
        session.add(user)
        session.commit()
        assert user.id != first_id
        assert user.totp_secret == Secret("AAAAAAAAAAAAAAAA")


def test_an_insert_that_fails_and_is_tried_again_loses_no_secret(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Numbered(email="taken"))
        session.commit()
        user = Numbered(email="taken", totp_secret=Secret("AAAAAAAAAAAAAAAA"))
        session.add(user)
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        assert user.totp_secret == Secret("AAAAAAAAAAAAAAAA")
        user.email = "free"
        session.add(user)
        session.commit()
        assert user.totp_secret == Secret("AAAAAAAAAAAAAAAA")


@pytest.mark.parametrize("end", [Session.commit, Session.rollback, Session.expire_all, Session.close])
def test_objects_that_only_their_session_and_each_other_hold_hinder_nobody(
    engine: Engine, end: Callable[[Session], None]
) -> None:
    """They are collected while the session makes them forget what was loaded."""
    with Session(engine) as session:
        session.add(
            Owner(id=1, devices=[Device(totp_secret=Secret(seed)) for seed in ("AAAAAAAAAAAAAAAA", "BBBBBBBBBBBBBBBB")])
        )
        session.commit()
        owner = session.scalars(select(Owner)).one()
        assert [device.totp_secret for device in owner.devices] == [Secret("AAAAAAAAAAAAAAAA"), Secret("BBBBBBBBBBBBBBBB")]
        end(session)
        owner = session.scalars(select(Owner)).one()
        owner.devices[0].totp_secret = Secret("CCCCCCCCCCCCCCCC")
        session.commit()
    with Session(engine) as session:
        assert [each.totp_secret for each in session.scalars(select(Device).order_by(Device.id))] == [
            Secret("CCCCCCCCCCCCCCCC"),
            Secret("BBBBBBBBBBBBBBBB"),
        ]


def test_a_row_that_gets_another_id_is_sealed_anew(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Required(name="a", secret=Secret("AAAAAAAAAAAAAAAA")))
        session.commit()
        row = session.scalars(select(Required)).one()
        row.name = "b"
        assert row.secret == Secret("AAAAAAAAAAAAAAAA")
        session.commit()
        assert row.secret == Secret("AAAAAAAAAAAAAAAA")
        row.name, row.secret = "c", Secret("BBBBBBBBBBBBBBBB")
        session.commit()
        assert row.secret == Secret("BBBBBBBBBBBBBBBB")
    [(name, value)] = stored(engine, "SELECT name, secret FROM required")
    assert name == "c"
    assert KEYS.decrypt(Cell("clinic.required", "secret", "c"), value) == Secret("BBBBBBBBBBBBBBBB")


def test_another_rows_bytes_are_not_inserted_as_ones_own(engine: Engine) -> None:
    """They would be stored without a murmur, and lock somebody out at the next login."""
    with Session(engine) as session:
        session.add_all(
            [Known(id=uuid.uuid4(), totp_secret=Secret("AAAAAAAAAAAAAAAA")), Numbered(email="a", totp_secret=Secret("B"))]
        )
        session.commit()
        known, numbered = session.scalars(select(Known)).one(), session.scalars(select(Numbered)).one()
        session.add(Known(id=uuid.uuid4(), totp_secret_sealed=known.totp_secret_sealed))
        with pytest.raises(NotAuthentic):
            session.flush()
        session.rollback()
        session.add(Numbered(email="b", totp_secret_sealed=numbered.totp_secret_sealed))
        with pytest.raises(NoRowId, match="another row's value"):
            session.flush()
        session.rollback()


def test_a_column_that_is_never_null_needs_an_id_first(engine: Engine) -> None:
    class Strict(DeclarativeBase):
        pass

    class Row(Strict):
        __tablename__ = "strict"
        id: Mapped[int] = mapped_column(primary_key=True)
        sealed_bytes: Mapped[bytes]
        secret = sealed("sealed_bytes", KEYS)

    Strict.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Row(secret=Secret("AAAAAAAAAAAAAAAA")))
        with pytest.raises(NoRowId, match="NOT NULL") as caught:
            session.flush()
        session.rollback()
        assert "id before the flush" in str(caught.value.hint)
        session.add(Row(id=session.scalar(select(func.nextval("strict_id_seq"))), secret=Secret("AAAAAAAAAAAAAAAA")))
        session.commit()
        assert session.scalars(select(Row)).one().secret == Secret("AAAAAAAAAAAAAAAA")


def test_keys_of_several_columns_are_refused(engine: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Pair(Other):
        __tablename__ = "pair"
        a: Mapped[int] = mapped_column(primary_key=True)
        b: Mapped[int] = mapped_column(primary_key=True)
        sealed_bytes: Mapped[bytes | None]
        secret = sealed("sealed_bytes", KEYS)

    Other.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Pair(a=1, b=2, secret=Secret("AAAAAAAAAAAAAAAA")))
        with pytest.raises(NoRowId, match="not one column"):
            session.flush()


@pytest.mark.parametrize("spelt", [str.upper, lambda text: text.replace("-", ""), "{{{}}}".format, str])
def test_a_uuid_that_is_given_as_a_text_is_bound_as_the_database_spells_it(engine: Engine, spelt: Callable[[str], str]) -> None:
    class Texts(DeclarativeBase):
        pass

    class Row(Texts):
        __tablename__ = "known"
        id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True)
        totp_secret_sealed: Mapped[bytes | None]
        totp_secret = sealed("totp_secret_sealed", KEYS)

    given = uuid.uuid4()
    with Session(engine) as session:
        row = Row(id=spelt(str(given)), totp_secret=Secret("AAAAAAAAAAAAAAAA"))
        session.add(row)
        session.commit()
        assert row.totp_secret == Secret("AAAAAAAAAAAAAAAA")
        row.totp_secret = Secret("BBBBBBBBBBBBBBBB")
        session.commit()
    with Session(engine) as session:
        assert session.get_one(Row, spelt(str(given))).totp_secret == Secret("BBBBBBBBBBBBBBBB")
    with Session(engine) as session:
        assert session.scalars(select(Row)).one().totp_secret == Secret("BBBBBBBBBBBBBBBB")
        assert session.scalars(select(Known)).one().totp_secret == Secret("BBBBBBBBBBBBBBBB")
        session.add(Row(id="a name", totp_secret=Secret("AAAAAAAAAAAAAAAA")))
        with pytest.raises(NoRowId, match="no UUID"):
            session.flush()


@pytest.mark.parametrize("spelt", ["0007", "+7", " 7 ", "7", "-0", "-07"])
def test_a_number_that_is_given_as_a_text_is_bound_as_the_database_spells_it(engine: Engine, spelt: str) -> None:
    with Session(engine) as session:
        row = Person(id=spelt, first=Secret("AAAAAAAAAAAAAAAA"))
        session.add(row)
        session.commit()
        assert row.first == Secret("AAAAAAAAAAAAAAAA")
        row.first = Secret("BBBBBBBBBBBBBBBB")
        session.commit()
    with Session(engine) as session:
        found = session.scalars(select(Person)).one()
        assert found.id == int(spelt)
        assert found.first == Secret("BBBBBBBBBBBBBBBB")


def test_a_text_that_is_no_number_is_no_id_of_a_row_that_has_numbers(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Person(id="seven", first=Secret("AAAAAAAAAAAAAAAA")))
        with pytest.raises(NoRowId, match="no whole number"):
            session.flush()


class Prefixed(TypeDecorator[str]):
    """An id that the application spells otherwise than the database does."""

    impl = Uuid
    cache_ok = True


class Colour(enum.Enum):
    RED = "red"


KEY_TYPES: dict[str, tuple[Callable[[], Any], bool]] = {
    "CHAR": (lambda: CHAR(10), False),
    "decorated": (Prefixed, False),
    "enum": (lambda: Enum(Colour), False),
    "numeric": (Numeric, False),
    "date": (Date, False),
    "smallint": (SmallInteger, True),
    "varchar": (lambda: VARCHAR(10), True),
    "text": (Text, True),
    "uuid": (UUID, True),
}


@pytest.mark.parametrize("name", KEY_TYPES)
def test_a_primary_key_that_the_database_may_spell_otherwise_is_refused_when_it_is_mapped(name: str) -> None:
    """Its values could not be read any more once they were written."""
    kind, taken = KEY_TYPES[name]

    class Other(DeclarativeBase):
        pass

    class Row(Other):
        __tablename__ = "other"
        id: Mapped[Any] = mapped_column(kind(), primary_key=True)
        sealed_bytes: Mapped[bytes | None]
        secret = sealed("sealed_bytes", KEYS)

    if taken:
        Other.registry.configure()
        return
    with pytest.raises(NoRowId, match="cannot be told how PostgreSQL spells") as caught:
        Other.registry.configure()
    assert str(caught.value).startswith("other.id is ")
    Other.registry.dispose()


# ------------------------------------------------------------------------------------------------------ how it is mapped


class Columns:
    """A model's, apart from the property."""

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    in_clear: Mapped[str | None] = mapped_column("totp_secret")
    sealed_bytes: Mapped[bytes | None]


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "the column misspelt": (
        lambda: sealed("saeled_bytes", KEYS),
        r"Row\.secret is sealed over 'saeled_bytes', which is no attribute of Row",
    ),
    "the former column misspelt": (
        lambda: sealed("sealed_bytes", KEYS, former="in_claer"),
        r"Row\.secret is sealed over 'in_claer', which is no attribute of Row",
    ),
    "the former column by its name in the table": (
        lambda: sealed("sealed_bytes", KEYS, former="totp_secret"),
        r"Row\.secret is sealed over 'totp_secret', which is no attribute of Row",
    ),
    "the column named as the property": (
        lambda: sealed("secret", KEYS),
        r"Row\.secret is sealed over 'secret', which is no attribute of Row",
    ),
    "a column of text": (lambda: sealed("email", KEYS), r"Row\.secret takes a column of bytes, and row\.email is String"),
    "the same column twice": (
        lambda: sealed("sealed_bytes", KEYS, former="sealed_bytes"),
        r"Row\.secret has no former column beside 'sealed_bytes'",
    ),
    "a way to read no column": (
        lambda: sealed("sealed_bytes", KEYS, read_former=FERNET.decrypt),
        r"Row\.secret has no former column beside 'sealed_bytes'",
    ),
    "a text for keys": (
        lambda: sealed("sealed_bytes", "keys"),  # type: ignore[arg-type]  # what is tested
        r"Row\.secret takes keys that encrypt and decrypt, and str does not",
    ),
    "a keyring for keys": (
        lambda: sealed("sealed_bytes", KEYS.keyring),  # type: ignore[arg-type]  # what is tested
        r"Row\.secret takes keys that encrypt and decrypt, and Keyring does not",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_model_is_found_when_the_class_is_mapped_and_not_at_a_login(name: str) -> None:
    make, message = MISTAKES[name]

    class Other(DeclarativeBase):
        pass

    with pytest.raises(ModelError, match=message) as caught:

        class Row(Columns, Other):
            __tablename__ = "row"
            secret = make()

    assert caught.value.hint


def test_a_validator_that_nobody_would_call_is_refused() -> None:
    class Other(DeclarativeBase):
        pass

    with pytest.raises(ModelError, match=r"SQLAlchemy calls no validator of Row\.secret"):

        class Row(Columns, Other):
            __tablename__ = "validated"
            secret = sealed("sealed_bytes", KEYS)

            @validates("secret")
            def check(self, _: str, value: object) -> object:
                return value


class Declared:
    sealed_bytes: Mapped[bytes | None]

    @declared_attr
    def secret(cls) -> hybrid_property[Secret | None]:  # noqa: N805  SQLAlchemy gives it the class
        return sealed("sealed_bytes", KEYS)


def declared() -> tuple[Any, Any]:
    class Other(DeclarativeBase):
        pass

    class Row(Declared, Other):
        __tablename__ = "declared"
        id: Mapped[int] = mapped_column(primary_key=True)

    return Other.metadata, Row


def imperative() -> tuple[Any, Any]:
    class Row:
        pass

    mapped = registry()
    columns = (Column("id", Integer, primary_key=True), Column("sealed_bytes", LargeBinary))
    Row.secret = sealed("sealed_bytes", KEYS)  # type: ignore[attr-defined]
    mapped.map_imperatively(Row, Table("imperative", mapped.metadata, *columns))
    return mapped.metadata, Row


@pytest.mark.parametrize("make", [declared, imperative])
def test_it_may_come_from_a_declared_attr_or_be_put_on_a_class_before_it_is_mapped(
    engine: Engine, make: Callable[[], tuple[Any, Any]]
) -> None:
    metadata, model = make()
    metadata.create_all(engine)
    with Session(engine) as session:
        row = model()
        row.secret = Secret("AAAAAAAAAAAAAAAA")
        session.add(row)
        session.commit()
        assert row.secret == Secret("AAAAAAAAAAAAAAAA")
        assert session.scalars(select(model).where(model.secret.is_not(None))).one() is row
        with pytest.raises(ColumnError):
            session.execute(update(model).values(sealed_bytes=b"JBSWY3DPEHPK3PXP"))


def test_it_is_not_put_on_a_class_that_is_mapped_already() -> None:
    class Other(DeclarativeBase):
        pass

    class Row(Other):
        __tablename__ = "late"
        id: Mapped[int] = mapped_column(primary_key=True)
        sealed_bytes: Mapped[bytes | None]

    Row.secret = sealed("sealed_bytes", KEYS)
    with pytest.raises(ModelError, match=r"Row was mapped before sealed\(…\) was put on it"):
        Row(secret=Secret("AAAAAAAAAAAAAAAA"))


# ------------------------------------------------------------------------------------------------------- what is refused


def test_what_is_no_secret_is_not_taken_and_not_shown(planted: Planted) -> None:
    seed = planted.seed()
    with pytest.raises(TypeError, match=r"what Numbered\.totp_secret takes, if it is not None, is a Secret, not str") as caught:
        Numbered(email="a", totp_secret=seed)
    assert seed not in str(caught.value)


REFUSED: dict[str, Callable[[], object]] = {
    "equal": lambda: Numbered.totp_secret == Secret("JBSWY3DPEHPK3PXP"),
    "equal to text": lambda: Numbered.totp_secret == "JBSWY3DPEHPK3PXP",
    "equal from the right": lambda: Secret("JBSWY3DPEHPK3PXP") == Numbered.totp_secret,
    "equal to itself": lambda: Numbered.totp_secret == Numbered.totp_secret,
    "not equal": lambda: Numbered.totp_secret != Secret("JBSWY3DPEHPK3PXP"),
    "less": lambda: Numbered.totp_secret < Secret("JBSWY3DPEHPK3PXP"),
    "in": lambda: Numbered.totp_secret.in_([Secret("JBSWY3DPEHPK3PXP")]),
    "like": lambda: Numbered.totp_secret.like("JBSW%"),
    "sorted": lambda: select(Numbered).order_by(Numbered.totp_secret),
    "sorted down": lambda: select(Numbered).order_by(Numbered.totp_secret.desc()),
    "selected": lambda: select(Numbered.totp_secret),
    "concatenated": lambda: Numbered.totp_secret + "x",
    "filtered by keyword": lambda: select(Numbered).filter_by(totp_secret=Secret("JBSWY3DPEHPK3PXP")),
    "counted": lambda: func.count(Numbered.totp_secret),
    "updated": lambda: update(Numbered).values({Numbered.totp_secret: Secret("JBSWY3DPEHPK3PXP")}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_database_is_never_asked_to_compare_what_it_cannot_read(engine: Engine, name: str) -> None:
    refused = pytest.raises(NotComparable, match=r"Numbered\.totp_secret is encrypted.* select the object")
    with Session(engine) as session, refused:
        session.execute(REFUSED[name]())  # type: ignore[call-overload]  # a statement, if it was not refused before


@pytest.mark.parametrize("option", [load_only, defer, undefer])
@pytest.mark.parametrize("model", [Moving, aliased(Moving)])
def test_loader_options_name_the_columns_that_they_take(option: Callable[[Any], Any], model: Any) -> None:
    columns = r"Moving\)?\.totp_secret_sealed and (aliased\()?Moving\)?\.totp_plain"
    with pytest.raises(NotLoadable, match=rf"totp_secret is no column: load_only, defer and undefer take .*{columns}"):
        select(model).options(option(model.totp_secret))


def test_the_database_is_asked_who_has_a_secret(engine: Engine) -> None:
    with Session(engine) as session:
        session.add_all([Numbered(email="a", totp_secret=Secret("AAAAAAAAAAAAAAAA")), Numbered(email="b")])
        session.add_all([Moving(totp_plain="AAAAAAAAAAAAAAAA"), Moving(totp_secret=Secret("A")), Moving()])
        session.commit()
        assert session.scalars(select(Numbered.email).where(Numbered.totp_secret.is_not(None))).all() == ["a"]
        assert session.scalars(select(Numbered.email).where(Numbered.totp_secret.is_(None))).all() == ["b"]
        assert session.scalars(select(Numbered.email).where(Numbered.totp_secret == None)).all() == ["b"]  # noqa: E711  SQL
        assert session.scalars(select(Numbered.email).where(Numbered.totp_secret != None)).all() == ["a"]  # noqa: E711  SQL
        assert session.scalars(select(Moving.id).where(Moving.totp_secret.is_not(None)).order_by(Moving.id)).all() == [1, 2]
        assert session.scalars(select(Moving.id).where(Moving.totp_secret.is_(None))).all() == [3]


def overwritten(session: Session) -> None:
    session.scalars(select(Known)).one().totp_secret_sealed = b"JBSWY3DPEHPK3PXP"
    session.flush()


AROUND: dict[str, Callable[[Session], object]] = {
    "assigned to the column": overwritten,
    "updated": lambda session: session.execute(update(Known).values(totp_secret_sealed=b"JBSWY3DPEHPK3PXP")),
    "updated where": lambda session: session.execute(update(Known.__table__).values(totp_secret_sealed=b"JBSWY3DPEHPK3PXP")),  # type: ignore[arg-type]
    "queried": lambda session: session.query(Known).update({"totp_secret_sealed": b"JBSWY3DPEHPK3PXP"}),
    "inserted": lambda session: session.execute(insert(Known).values(id=uuid.uuid4(), totp_secret_sealed=b"JBSWY3DPEHPK3PXP")),
    "inserted, several": lambda session: session.execute(
        insert(Known), [{"id": uuid.uuid4(), "totp_secret_sealed": b"JBSWY3DPEHPK3PXP"} for _ in range(2)]
    ),
    "a text": lambda session: session.execute(update(Known).values(totp_secret_sealed="JBSWY3DPEHPK3PXP")),
    "bulk insert": lambda session: session.bulk_insert_mappings(
        Known, [{"id": uuid.uuid4(), "totp_secret_sealed": b"JBSWY3DPEHPK3PXP"}]
    ),
}


@pytest.mark.parametrize("name", AROUND)
def test_bytes_that_are_not_encrypted_are_written_by_no_statement_and_shown_by_no_error(engine: Engine, name: str) -> None:
    with Session(engine) as session:
        session.add(Known(totp_secret=Secret("KRSXG5CTMVRXEZLU")))
        session.commit()
        before = stored(engine, "SELECT totp_secret_sealed FROM known")
        with pytest.raises(ColumnError) as caught:
            AROUND[name](session)
        session.rollback()
    assert "JBSWY3DP" not in repr(caught.value) + str(caught.value) + str(caught.value.hint)
    assert stored(engine, "SELECT totp_secret_sealed FROM known") == before


def test_encrypted_bytes_may_be_written_past_the_object_and_no_others_to_it(engine: Engine) -> None:
    """As a program that copies a table does. On an object they have to be its own."""
    given = uuid.uuid4()
    envelope = KEYS.encrypt(Cell("known", "totp_secret_sealed", str(given)), Secret("KRSXG5CTMVRXEZLU"))
    with Session(engine) as session:
        session.execute(insert(Known).values(id=given, totp_secret_sealed=memoryview(envelope)))
        session.execute(update(Known).values(totp_secret_sealed=None))
        session.execute(update(Known).values(totp_secret_sealed=envelope))
        row = session.scalars(select(Known).where(Known.totp_secret_sealed == envelope)).one()
        assert row.totp_secret == Secret("KRSXG5CTMVRXEZLU")
        row.totp_secret_sealed = KEYS.encrypt(Cell("known", "totp_secret_sealed", str(given)), Secret("AAAAAAAAAAAAAAAA"))
        session.commit()
        assert row.totp_secret == Secret("AAAAAAAAAAAAAAAA")
        row.totp_secret_sealed = KEYS.encrypt(Cell("known", "totp_secret_sealed", str(uuid.uuid4())), Secret("B"))
        with pytest.raises(NotAuthentic):
            session.commit()


def test_the_column_is_bytea_as_it_was_mapped(engine: Engine) -> None:
    [column] = [each for each in inspect(engine).get_columns("known") if each["name"] == "totp_secret_sealed"]
    assert isinstance(column["type"], BYTEA)
    assert "totp_secret_sealed BYTEA" in str(CreateTable(Numbered.__table__).compile(engine))  # type: ignore[arg-type]


BULK: dict[str, Callable[[Session], object]] = {
    "objects": lambda session: session.bulk_save_objects([Known(id=uuid.uuid4(), totp_secret=Secret("JBSWY3DPEHPK3PXP"))]),
    "values": lambda session: session.execute(insert(Known).values(totp_secret=Secret("JBSWY3DPEHPK3PXP"))),
    "the column itself": lambda session: session.execute(insert(Known).values(totp_secret_sealed=Secret("JBSWY3DPEHPK3PXP"))),
}


@pytest.mark.parametrize("name", BULK)
def test_ways_around_the_object_fail_and_show_nothing(engine: Engine, name: str) -> None:
    """SQLAlchemy tells no listener of these, so the value is never sealed: then it is not written either."""
    with Session(engine) as session, pytest.raises(Exception) as caught:  # noqa: PT011  the driver's, or SQLAlchemy's own
        BULK[name](session)
    assert "JBSWY3DP" not in repr(caught.value)
    assert stored(engine, "SELECT FROM known") == []


# ------------------------------------------------------------------------------------------ moved, changed, unknown: line 4


@pytest.fixture
def two(engine: Engine) -> Engine:
    with Session(engine) as session:
        session.add_all([Numbered(email=name, totp_secret=Secret(name * 16)) for name in "AB"])
        session.add(Moving(id=1))
        session.commit()
    return engine


VALUE = "totp_secret_sealed"
LAST_BIT = f"8 * octet_length({VALUE}) - 1"
TAMPERED: dict[str, tuple[str, type[ColumnError]]] = {
    "from another row": (f"(SELECT {VALUE} FROM numbered WHERE email = 'B')", NotAuthentic),
    "one bit": (f"set_bit({VALUE}, {LAST_BIT}, 1 - get_bit({VALUE}, {LAST_BIT}))", NotAuthentic),
    "cut off": (f"substring({VALUE} FROM 1 FOR 20)", Malformed),
    "empty": ("''", Malformed),
    "in clear": ("'JBSWY3DPEHPK3PXP'", Malformed),
    "under an unknown key": (f"overlay({VALUE} PLACING '2024-1' FROM 3)", UnknownKey),
    "under a retired key": (f"overlay({VALUE} PLACING '2025-1' FROM 3)", RetiredKey),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_done_to_a_row_behind_the_application_is_refused(two: Engine, name: str) -> None:
    expression, expected = TAMPERED[name]
    with two.begin() as connection:
        connection.execute(text(f"UPDATE numbered SET totp_secret_sealed = {expression} WHERE email = 'A'"))

    class Tampered(DeclarativeBase):
        pass

    class Row(Tampered):
        __tablename__ = "numbered"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str]
        totp_secret_sealed: Mapped[bytes | None]
        totp_secret = sealed("totp_secret_sealed", AesGcm(Keyring("2026-1", KEYS.keyring.keys, ("2025-1",))))

    with Session(two) as session:
        damaged, whole = session.scalars(select(Row).order_by(Row.email))
        with pytest.raises(expected) as caught:
            assert damaged.totp_secret
        assert type(caught.value) is expected
        assert whole.totp_secret == Secret("B" * 16)


def test_a_value_from_another_table_is_refused(two: Engine) -> None:
    with two.begin() as connection:
        connection.execute(
            text("UPDATE moving SET totp_secret_sealed = (SELECT totp_secret_sealed FROM numbered WHERE id = 1)")
        )
    with Session(two) as session, pytest.raises(NotAuthentic):
        assert session.scalars(select(Moving)).one().totp_secret


def test_a_value_from_another_column_is_refused(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Person(first=Secret("AAAAAAAAAAAAAAAA"), second=Secret("BBBBBBBBBBBBBBBB")))
        session.commit()
        session.execute(text("UPDATE person SET first_sealed = second_sealed"))
        with pytest.raises(NotAuthentic):
            assert session.scalars(select(Person)).one().first


# -------------------------------------------------------------------------------------------------- while the column moves


def test_rows_are_read_in_either_form_and_written_in_the_new_one_alone(engine: Engine) -> None:
    token = Fernet(FERNET_KEY).encrypt(b"FERNETFERNETFERN").decode()
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO moving (totp_secret) VALUES ('JBSWY3DPEHPK3PXP'), (:token), (''), (NULL)"), {"token": token}
        )
    with Session(engine) as session:
        rows = list(session.scalars(select(Moving).order_by(Moving.id)))
        assert [row.totp_secret for row in rows] == [Secret("JBSWY3DPEHPK3PXP"), Secret("FERNETFERNETFERN"), None, None]
        for row in rows[:2]:
            row.totp_secret = Secret("AAAAAAAAAAAAAAAA")
        rows[2].totp_secret = None
        rows.append(Moving(totp_secret=Secret("AAAAAAAAAAAAAAAA")))
        session.add(rows[-1])
        session.commit()
        assert [row.totp_secret for row in rows] == [Secret("A" * 16), Secret("A" * 16), None, None, Secret("A" * 16)]
    assert stored(engine, "SELECT id, totp_secret_sealed IS NULL FROM moving WHERE totp_secret IS NULL ORDER BY id") == [
        (1, False),
        (2, False),
        (3, True),
        (4, True),
        (5, False),
    ]


def test_where_both_forms_are_the_new_one_counts(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Moving(totp_secret=Secret("AAAAAAAAAAAAAAAA")))
        session.commit()
        session.execute(text("UPDATE moving SET totp_secret = 'JBSWY3DPEHPK3PXP'"))
        assert session.scalars(select(Moving)).one().totp_secret == Secret("AAAAAAAAAAAAAAAA")


def test_a_former_value_that_nobody_can_read_says_so(engine: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Row(Other):
        __tablename__ = "moving"
        id: Mapped[int] = mapped_column(primary_key=True)
        totp_plain: Mapped[str | None] = mapped_column("totp_secret", String(140))
        totp_secret_sealed: Mapped[bytes | None]
        totp_secret = sealed("totp_secret_sealed", KEYS, former="totp_plain")

    with engine.begin() as connection:
        token = Fernet(FERNET_KEY).encrypt(b"JBSWY3DPEHPK3PXP").decode()
        connection.execute(text("INSERT INTO moving (totp_secret) VALUES (:token)"), {"token": token})
    with Session(engine) as session, pytest.raises(ColumnError, match="not in clear but fernet"):
        assert session.scalars(select(Row)).one().totp_secret


def test_a_subclass_may_say_anew_that_its_column_is_moved(engine: Engine) -> None:
    """As the example does: the listeners of both definitions are called, and agree."""

    class Other(DeclarativeBase):
        pass

    class Sealed:
        totp_secret_sealed: Mapped[bytes | None]
        totp_secret = sealed("totp_secret_sealed", KEYS)

    class Row(Sealed, Other):
        __tablename__ = "moving"
        id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
        totp_plain: Mapped[str | None] = mapped_column("totp_secret", String(140))
        totp_secret = sealed("totp_secret_sealed", KEYS, former="totp_plain")

    with Session(engine) as session:
        session.add_all([Row(totp_secret=Secret("A" * 16)), Row(id=99, totp_secret=Secret("B" * 16)), Row(totp_plain="C" * 16)])
        session.commit()
        rows = session.scalars(select(Row).order_by(Row.id)).all()
        assert [row.totp_secret for row in rows] == [Secret(letter * 16) for letter in "ACB"]
        rows[1].totp_secret = Secret("D" * 16)
        session.commit()
        assert rows[1].totp_secret == Secret("D" * 16)
        assert rows[1].totp_plain is None


FIRST = uuid.UUID(int=1)


def a_row(row_id: uuid.UUID) -> dict[str, Any]:
    """Made where it is used: a secret that lives on is redacted in every other test."""
    return {"id": row_id, "totp_secret": Secret("JBSWY3DPEHPK3PXP")}


IN_BULK: dict[str, Callable[[Session], object]] = {
    "inserted": lambda session: session.execute(insert(Known), [a_row(uuid.uuid4())]),
    "inserted and returned": lambda session: session.execute(insert(Known).returning(Known), [a_row(uuid.uuid4())]),
    "updated": lambda session: session.execute(update(Known), [a_row(FIRST)]),
    "mappings inserted": lambda session: session.bulk_insert_mappings(Known, [a_row(uuid.uuid4())]),
    "mappings updated": lambda session: session.bulk_update_mappings(Known, [a_row(FIRST)]),
}


@pytest.mark.parametrize("name", IN_BULK)
def test_a_bulk_statement_writes_no_secret(engine: Engine, name: str) -> None:
    """From SQLAlchemy 2.1 on it is refused. Before, what is no column is not taken notice of, and the guide says so."""
    with Session(engine) as session:
        session.add(Known(id=FIRST))
        session.commit()
        if sqlalchemy.__version__ < "2.1":
            IN_BULK[name](session)
        else:
            with pytest.raises(NotComparable, match="select the object"):
                IN_BULK[name](session)
            session.rollback()
        session.commit()
    assert set(stored(engine, "SELECT totp_secret_sealed FROM known")) == {(None,)}


def test_a_new_object_is_pickled_once_its_secret_is_sealed(engine: Engine) -> None:
    """As caches do, with objects that are not expired when the session commits."""
    with Session(engine, expire_on_commit=False) as session:
        user = Numbered(email="a", totp_secret=Secret("JBSWY3DPEHPK3PXP"))
        session.add(user)
        with pytest.raises(TypeError):
            pickle.dumps(user)
        session.commit()
        pickled = pickle.dumps(user)
    assert b"JBSWY3DP" not in pickled
    assert pickle.loads(pickled).totp_secret == Secret("JBSWY3DPEHPK3PXP")  # noqa: S301  our own


def test_a_schema_that_is_translated_is_refused_unless_the_name_that_is_bound_was_given(engine: Engine) -> None:
    """A value that is copied from one tenant's schema to another's would open there."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
        Base.metadata.create_all(connection.execution_options(schema_translate_map={None: "tenant"}))
    tenant = engine.execution_options(schema_translate_map={None: "tenant", "other": "tenant"})
    with Session(tenant) as session:
        session.add(Known(totp_secret=Secret("AAAAAAAAAAAAAAAA")))
        with pytest.raises(ColumnError, match="schema_translate_map sends known to another schema"):
            session.flush()
        session.rollback()
        row = Known()
        session.add_all([row, Required(name="a", secret=Secret("AAAAAAAAAAAAAAAA"))])
        session.commit()
        row.totp_secret = Secret("AAAAAAAAAAAAAAAA")
        with pytest.raises(ColumnError, match="schema_translate_map"):
            session.flush()
    assert stored(engine, "SELECT totp_secret_sealed FROM tenant.known") == [(None,)]
    with Session(engine.execution_options(schema_translate_map={None: None, "other": "tenant"})) as session:
        session.add(Known(totp_secret=Secret("AAAAAAAAAAAAAAAA")))
        session.commit()


def test_rows_that_were_moved_behind_a_session_are_read_after_the_next_load(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Moving(totp_plain="JBSWY3DPEHPK3PXP"))
        session.commit()
        row = session.scalars(select(Moving)).one()
        assert row.totp_secret == Secret("JBSWY3DPEHPK3PXP")
        envelope = KEYS.encrypt(Cell("moving", "totp_secret_sealed", "1"), Secret("JBSWY3DPEHPK3PXP"))
        with engine.begin() as connection:
            connection.execute(text("UPDATE moving SET totp_secret_sealed = :e, totp_secret = NULL"), {"e": envelope})
        assert row.totp_secret == Secret("JBSWY3DPEHPK3PXP")
        session.commit()
        assert row.totp_secret == Secret("JBSWY3DPEHPK3PXP")
        assert key_id(row.totp_secret_sealed or b"") == "2026-1"


def move(engine: Engine, row_id: int) -> None:
    """What `backupd columns encrypt --stage rows` does to a row."""
    envelope = KEYS.encrypt(Cell("moving", "totp_secret_sealed", str(row_id)), Secret("JBSWY3DPEHPK3PXP"))
    statement = text("UPDATE moving SET totp_secret_sealed = :e, totp_secret = NULL WHERE id = :id")
    with engine.begin() as connection:
        assert connection.execute(statement, {"e": envelope, "id": row_id}).rowcount == 1


@pytest.mark.parametrize("seed", [None, "AAAAAAAAAAAAAAAA"], ids=["removed", "replaced"])
def test_what_is_assigned_to_a_row_that_was_moved_meanwhile_counts(engine: Engine, seed: str | None) -> None:
    """Otherwise a second factor that its user removed, perhaps because it was stolen, would be in force again."""
    secret = None if seed is None else Secret(seed)
    with Session(engine) as session:
        session.add_all([Moving(id=1, totp_plain="JBSWY3DPEHPK3PXP"), Moving(id=2, totp_secret=Secret("B" * 16))])
        session.commit()
        moved, written_by_the_old_version = session.scalars(select(Moving).order_by(Moving.id)).all()
        assert moved.totp_secret is not None
        assert written_by_the_old_version.totp_secret is not None
        move(engine, 1)
        with engine.begin() as connection:
            connection.execute(text("UPDATE moving SET totp_secret = 'JBSWY3DPEHPK3PXP' WHERE id = 2"))
        moved.totp_secret = written_by_the_old_version.totp_secret = secret
        session.commit()
    with Session(engine) as session:
        assert [row.totp_secret for row in session.scalars(select(Moving))] == [secret, secret]
    assert stored(engine, "SELECT FROM moving WHERE totp_secret IS NOT NULL") == []


def test_a_row_that_was_moved_meanwhile_may_get_another_id(engine: Engine) -> None:
    """Its value is bound to the id before, and the object knows only what it loaded."""
    with Session(engine) as session:
        session.add(Moving(id=1, totp_plain="AAAAAAAAAAAAAAAA"))
        session.commit()
        row = session.get_one(Moving, 1)
        assert row.totp_secret == Secret("AAAAAAAAAAAAAAAA")
        envelope = KEYS.encrypt(Cell("moving", "totp_secret_sealed", "1"), Secret("AAAAAAAAAAAAAAAA"))
        with engine.begin() as other:
            other.execute(text("UPDATE moving SET totp_secret_sealed = :sealed, totp_secret = NULL"), {"sealed": envelope})
        row.id = 2
        session.commit()
        assert row.totp_secret == Secret("AAAAAAAAAAAAAAAA")
    assert stored(engine, "SELECT id, totp_secret FROM moving") == [(2, None)]


class MovingApart(DeclarativeBase):
    pass


class Deferred(MovingApart):
    """The table of `Moving`, whose former column is loaded by a SELECT of its own."""

    __tablename__ = "moving"
    id: Mapped[int] = mapped_column(primary_key=True)
    totp_plain: Mapped[str | None] = mapped_column("totp_secret", String(140), deferred=True)
    totp_secret_sealed: Mapped[bytes | None]
    totp_secret = sealed("totp_secret_sealed", KEYS, former="totp_plain")


def first_of(session: Session, model: type[Any], *options: Any) -> Any:
    return session.scalars(select(model).options(*options)).one()


def populated(session: Session, *options: Any) -> Any:
    query = select(Moving).options(*options).execution_options(populate_existing=True)
    return session.scalars(query).one()


def partly(session: Session, engine: Engine) -> Any:
    row = first_of(session, Moving)
    move(engine, 1)
    session.refresh(row, ["totp_plain"])
    return row


def populated_partly(session: Session, engine: Engine) -> Any:
    row = first_of(session, Moving)
    move(engine, 1)
    assert populated(session, load_only(Moving.totp_plain)) is row
    return row


def deferred(session: Session, engine: Engine) -> Any:
    row = first_of(session, Deferred)
    move(engine, 1)
    return row


def deferred_and_looked_at(session: Session, engine: Engine) -> Any:
    row = deferred(session, engine)
    assert row.totp_plain is None
    return row


def one_only(session: Session, engine: Engine) -> Any:
    row = first_of(session, Moving, load_only(Moving.totp_secret_sealed))
    move(engine, 1)
    return row


def the_other_only(session: Session, engine: Engine) -> Any:
    row = first_of(session, Moving, load_only(Moving.totp_plain))
    move(engine, 1)
    return row


APART = [deferred, deferred_and_looked_at, one_only, the_other_only, partly, populated_partly]


@pytest.mark.parametrize("loaded", APART)
def test_a_row_that_moves_between_the_loads_of_its_two_columns_keeps_its_secret(
    engine: Engine, loaded: Callable[[Session, Engine], Any]
) -> None:
    """None would say that the user has no second factor, and an application may then be content with the password."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO moving (id, totp_secret) VALUES (1, 'JBSWY3DPEHPK3PXP')"))
    with Session(engine) as session:
        row = loaded(session, engine)
        assert row.totp_secret == Secret("JBSWY3DPEHPK3PXP")


def test_an_object_that_left_its_session_with_the_columns_loaded_apart_does_not_say_that_there_is_no_secret(
    engine: Engine,
) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO moving (id, totp_secret) VALUES (1, 'JBSWY3DPEHPK3PXP')"))
    with Session(engine) as session:
        row = deferred_and_looked_at(session, engine)
    with pytest.raises(ColumnError, match="not loaded at once"):
        assert row.totp_secret


def test_where_both_columns_came_at_once_nothing_more_is_asked(engine: Engine, seen: Seen) -> None:
    """A list of users without a second factor is one SELECT, and asyncio can load nothing on the way."""
    with Session(engine) as session:
        row = Moving(id=1)
        session.add(row)
        session.flush()
        assert row.totp_secret is None
        session.commit()
        assert row.totp_secret is None
        session.refresh(row)
        assert populated(session).totp_secret is None
        row.totp_secret = None
        assert row.totp_secret is None
    assert row.totp_secret is None
    assert [statement.split()[0] for statement in seen.statements] == ["INSERT", "SELECT", "SELECT", "SELECT"]


def test_what_was_assigned_is_not_lost_to_a_second_look(engine: Engine) -> None:
    with Session(engine, autoflush=False) as session:
        session.add(Moving(id=1, totp_plain="JBSWY3DPEHPK3PXP"))
        session.commit()
        row = first_of(session, Deferred)
        row.totp_plain = None
        assert row.totp_secret is None
        row.totp_secret = Secret("AAAAAAAAAAAAAAAA")
        assert row.totp_secret == Secret("AAAAAAAAAAAAAAAA")
        row.totp_secret = None
        assert row.totp_secret is None
        session.commit()
        assert row.totp_secret is None


# ------------------------------------------------------------------------------------------------------------ nothing leaks


def test_the_plaintext_is_in_no_statement_parameter_log_error_or_repr(
    engine: Engine, seen: Seen, planted: Planted, caplog: pytest.LogCaptureFixture
) -> None:
    """With echo on, which logs each parameter, and with an error, which carries them."""
    seed, other = planted.seed(), planted.seed()
    engine.echo = "debug"
    with caplog.at_level(logging.DEBUG, "sqlalchemy"), Session(engine) as session:
        user = Numbered(email="a", totp_secret=Secret(seed))
        shown = repr(user.totp_secret_sealed) + repr(user.__dict__)
        session.add(user)
        session.commit()
        user.totp_secret = Secret(other)
        shown += repr(user.__dict__)
        session.commit()
        assert user.totp_secret == Secret(other)
        shown += repr(user.__dict__)
        session.add(Numbered(email="a", totp_secret=Secret(seed)))
        with pytest.raises(IntegrityError) as caught:
            session.commit()
    shown += str(caught.value) + repr(caught.value.params) + repr(caught.value.statement)
    assert "totp_secret_sealed" in seen.everything
    planted.assert_absent(shown + seen.everything + caplog.text, "what SQLAlchemy showed")


def test_neither_does_the_database_server_see_it(engine: Engine, database17: Database, planted: Planted) -> None:
    """Its own log of every statement with every parameter, as an auditor may have switched on."""
    database17.execute(f"ALTER DATABASE {database17.name} SET log_statement = 'all'")
    database17.execute(f"ALTER DATABASE {database17.name} SET log_parameter_max_length = -1")
    engine.dispose()
    with Session(engine) as session:
        session.add(Numbered(email="a", totp_secret=Secret(planted.seed())))
        session.commit()
        user = session.scalars(select(Numbered)).one()
        user.totp_secret = Secret(planted.seed())
        session.commit()
    log = database17.server.log.read_text(errors="replace")
    assert "INSERT INTO numbered" in log
    planted.assert_absent(log, "the server's log")
