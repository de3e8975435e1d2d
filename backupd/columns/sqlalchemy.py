"""An encrypted attribute of a SQLAlchemy 2 model, over a BYTEA column.

    keys = LiveKeyring(open_custodian(SecretRef("file", "/etc/clinic/keyring.json"), os.environ).fetch)

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        totp_secret_sealed: Mapped[bytes | None]
        totp_secret = sealed("totp_secret_sealed", keys)

    user.totp_secret = totp.new_seed()      # a Secret goes in, and comes out

What is assigned is encrypted when the session flushes: the row's id is authenticated with it, and is not known before. Where
the database makes the id, a row is inserted without the value, which follows by an UPDATE in the same flush. Plaintext is in no
statement, no parameter and no error. Knows no table beside its own, and opens no connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import (
    CHAR,
    NCHAR,
    Column,
    Connection,
    Enum,
    Integer,
    LargeBinary,
    String,
    TypeDecorator,
    Uuid,
    event,
    inspect,
    update,
)
from sqlalchemy.ext.hybrid import Comparator, hybrid_property
from sqlalchemy.orm import InstanceState, Mapper, QueryContext
from sqlalchemy.orm.attributes import QueryableAttribute, flag_modified, set_committed_value
from sqlalchemy.types import NullType

from backupd.columns import Cell, ColumnError
from backupd.columns.forms import Form, form_of
from backupd.columns.sealed_sql import Envelope as Envelope
from backupd.columns.sealed_sql import NotComparable as NotComparable
from backupd.columns.sealed_sql import NotLoadable as NotLoadable
from backupd.columns.sealed_sql import NotSealed as NotSealed
from backupd.columns.sealed_sql import NullOnly, not_loadable
from backupd.redact import REDACTED, Secret, secret_due

ReadFormer = Callable[[Cell, bytes], Secret]
"""Opens a value of the former column that is not in clear; `decrypt` of a cipher is one."""


_WAITING: WeakKeyDictionary[InstanceState[Any], dict[str, Secret]] = WeakKeyDictionary()
"""What was sealed for a new row, by the attribute's name, in case its insert is undone and done again. Not in the object's
state, which is pickled."""


class Sealer(Protocol):
    """What encrypts and decrypts cells: a `LiveKeyring`, or an `AesGcm` with keys that do not change."""

    def encrypt(self, cell: Cell, plaintext: Secret) -> bytes: ...

    def decrypt(self, cell: Cell, data: bytes) -> Secret: ...


class ModelError(ColumnError):
    """`sealed(…)` does not fit the class that it stands in. Raised when the class is mapped, as a rule."""


class NoRowId(ColumnError):
    """A value is bound to its row's id, and there is none, or not the one it was written under."""


def sealed(
    attribute: str,
    keys: Sealer,
    *,
    table: str | None = None,
    former: str | None = None,
    read_former: ReadFormer | None = None,
) -> hybrid_property[Secret | None]:
    """A hybrid property over the model's `attribute`, a LargeBinary column. Its value is a `Secret`, or None for NULL.

    A value is bound to the column's name and to the table's as SQLAlchemy has it, with the schema if one is set; give `table`
    where backupd's configuration writes that otherwise. The primary key is one column: Integer, String, Text or Uuid (or made
    of them, but no CHAR, Enum or TypeDecorator, whose ids may be spelt otherwise in the database).

    It may stand in a mixin, come from a `declared_attr`, or be put on a class before `map_imperatively`. Mapping the class
    raises ModelError for names that are no columns of it, a column that is none of bytes, or keys that are none.

    `former` is the attribute of the column that is moved here, while rows may be in either. It is read where the sealed one is
    NULL: as it stands if it is in clear, else by `read_former`. Each assignment writes the sealed one and empties it.
    """
    return _Sealed(attribute, keys, table, former, read_former)


class _Unsealed:
    """A value that waits for its row's id, in the place of the bytes. A statement with one fails, and shows nothing."""

    __slots__ = ("secret",)

    def __init__(self, secret: Secret) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"<unsealed {REDACTED}>"


class _Sealed(hybrid_property[Secret | None]):
    """Inherits because SQLAlchemy looks for hybrid properties by their class, and Python tells the owner to `__set_name__`."""

    def __init__(
        self, attribute: str, keys: Sealer, table: str | None, former: str | None, read_former: ReadFormer | None
    ) -> None:
        self._attribute = attribute
        self._apart = ("backupd, loaded apart", attribute)
        self._keys = keys
        self._table = table
        self._former = former
        self._read_former = read_former
        # Annotated as a comparator, and called with the class to get one: so its own decorator `comparator` uses it.
        self._mapped = False
        super().__init__(fget=self._get, fset=self._set, custom_comparator=self._compare)  # type: ignore[arg-type]

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.__name__ = name  # by which hybrid_property finds itself in the class

    # ------------------------------------------------------------------------------------------------------ in Python

    def _get(self, instance: Any) -> Secret | None:
        value = getattr(instance, self._attribute)
        if isinstance(value, _Unsealed):
            return value.secret
        state = inspect(instance)
        if not state.has_identity and (waiting := self._waiting(instance)) is not None:
            return waiting
        if value is None and self._former is not None and self._may_have_moved(instance, self._former):
            value = self._load_both(instance, self._former)
        if value is not None:
            return self._open(instance, value)
        return None if self._former is None else self._get_former(instance, self._former)

    def _set(self, instance: Any, value: Secret | None) -> None:
        if value is not None and not isinstance(value, Secret):
            raise secret_due(f"what {type(instance).__name__}.{self.__name__} takes, if it is not None,", value)
        if not self._mapped:
            raise ModelError(
                f"{type(instance).__name__} was mapped before sealed(…) was put on it, and would write nothing",
                "put it into the class, or on it before it is mapped",
            )
        self._forget(instance)
        setattr(instance, self._attribute, None if value is None else _Unsealed(value))
        if self._former is not None:
            setattr(instance, self._former, None)
            # Both are sent though they look the same as they were loaded: the row may have moved to the other since.
            flag_modified(instance, self._attribute)
            flag_modified(instance, self._former)

    def _may_have_moved(self, instance: Any, former: str) -> bool:
        """Whether the row may have been moved between the load of the sealed column, which was NULL, and the former one's."""
        state = inspect(instance)
        if self._attribute not in state.dict or not state.committed_state.keys().isdisjoint({self._attribute, former}):
            return False  # a new row, or what was assigned to this one
        return former not in state.dict or (state.dict[former] is None and self._apart in state.info)

    def _load_both(self, instance: Any, former: str) -> bytes | None:
        """The sealed column's value, loaded by the one SELECT that loads the former one's."""
        session = inspect(instance).session
        if session is None:
            raise ColumnError(
                f"the columns of {type(instance).__name__}.{self.__name__} were not loaded at once, and the row may have moved",
                "read it while the object's session is open, or load both columns in one query",
            )
        with session.no_autoflush:
            session.refresh(instance, [self._attribute, former])
        value: bytes | None = getattr(instance, self._attribute)
        return value

    def _note_what_was_loaded(self, instance: Any, context: QueryContext, attributes: Iterable[str] | None) -> None:
        columns = {self._attribute, self._former}
        if attributes is not None:
            loaded = columns.intersection(attributes)
        else:
            # All that the query asked for. Its options may have left one out, which is then as it was.
            loaded = columns if not getattr(context.query, "_with_options", ()) else {self._attribute}
        if loaded == columns:
            inspect(instance).info.pop(self._apart, None)
        elif loaded:
            inspect(instance).info[self._apart] = True

    def _get_former(self, instance: Any, former: str) -> Secret | None:
        value = getattr(instance, former)
        if value is None or (form := form_of(value).form) is Form.EMPTY:
            return None
        cell = self._cell(instance, _stored_id(instance), former)
        data = value.encode() if isinstance(value, str) else bytes(value)
        if form is Form.PLAINTEXT:
            return Secret(data, f"{cell.table}.{cell.column}")
        if self._read_former is None:
            raise ColumnError(
                f"a value in {cell.table}.{cell.column} is not in clear but {form}", "give `read_former` to sealed(…)"
            )
        return self._read_former(cell, data)

    # --------------------------------------------------------------------------------------------------------- in SQL

    def _compare(self, owner: type[Any]) -> Comparator[Secret | None]:
        names = [name for name in (self._attribute, self._former) if name is not None]
        return NullOnly(f"{owner.__name__}.{self.__name__}", [getattr(owner, name) for name in names], names)

    def __get__(self, instance: Any, owner: Any) -> Any:
        found = super().__get__(instance, owner)
        if instance is None and isinstance(found, QueryableAttribute):
            # What load_only asks first. On the class, which SQLAlchemy makes for this property, for an alias makes another one.
            type(found)._column_strategy_attrs = not_loadable  # type: ignore[method-assign,assignment]
        return found

    # --------------------------------------------------------------------------------------------------------- mapped

    def mapped(self, mapper: Mapper[Any], name: str) -> None:
        """A class with this property, as its attribute `name`, was mapped. Raises ModelError when the two do not fit."""
        self.__name__ = name  # by which hybrid_property finds itself in the class
        self._check_model(mapper)
        column: Column[Any] = mapper.columns[self._attribute]
        if isinstance(column.type, LargeBinary):
            column.type = Envelope(column.type.length)
        for happening, listener in (
            ("before_insert", self._before_insert),
            ("after_insert", self._after_insert),
            ("before_update", self._before_update),
            ("mapper_configured", self._check_key),
            ("expire", self._forget),
        ):
            event.listen(mapper, happening, listener)
        if self._former is not None:
            event.listen(mapper, "refresh", self._note_what_was_loaded)
        self._mapped = True

    def _check_model(self, mapper: Mapper[Any]) -> None:
        model, columns = mapper.class_.__name__, mapper.columns
        where = f"{model}.{self.__name__}"
        for attribute in (self._attribute, self._former):
            if attribute is not None and attribute not in columns:
                raise ModelError(
                    f"{where} is sealed over {attribute!r}, which is no attribute of {model} that has a column",
                    f"give the name of one, as a text: {', '.join(columns.keys())}",
                )
        column = columns[self._attribute]
        kind = column.type.impl if isinstance(column.type, TypeDecorator) else column.type
        if not isinstance(kind, LargeBinary):
            raise ModelError(f"{where} takes a column of bytes, and {column} is {kind!r}", "map it as Mapped[bytes | None]")
        if self._former == self._attribute or (self._former is None and self._read_former is not None):
            raise ModelError(
                f"{where} has no former column beside {self._attribute!r}", "name in `former` the column that is moved"
            )
        if not all(callable(getattr(self._keys, name, None)) for name in ("encrypt", "decrypt")):
            raise ModelError(
                f"{where} takes keys that encrypt and decrypt, and {type(self._keys).__name__} does not",
                "give it a LiveKeyring, or an AesGcm made of a Keyring",
            )
        if self.__name__ in mapper.validators:
            raise ModelError(
                f"SQLAlchemy calls no validator of {where}, which is no column",
                "look at the value before it is assigned, and take the name out of @validates(…)",
            )

    def _check_key(self, mapper: Mapper[Any], _: type[Any]) -> None:
        for column in mapper.primary_key:
            kind = column.type
            if not isinstance(kind, Integer | String | Uuid | NullType) or isinstance(kind, CHAR | NCHAR | Enum):
                raise NoRowId(
                    f"{column} is {kind!r}: it cannot be told how PostgreSQL spells such an id, to which a value is bound",
                    "give the table a primary key of the type Integer, BigInteger, String, Text or Uuid",
                )

    # -------------------------------------------------------------------------------------------------------- flushed

    def _before_insert(self, mapper: Mapper[Any], connection: Connection, instance: Any) -> None:
        value = inspect(instance).dict.get(self._attribute)
        # After a rollback an object can be inserted again, with another id.
        secret = value.secret if isinstance(value, _Unsealed) else self._waiting(instance)
        row_id = mapper.primary_key_from_instance(instance)[0]
        if secret is not None or value is not None:
            self._check_table(mapper, connection)
        if secret is None:
            if value is not None:
                self._check_belongs(instance, row_id, value)
            return
        _WAITING.setdefault(inspect(instance), {})[self._attribute] = secret
        if row_id is not None:
            setattr(instance, self._attribute, self._seal(instance, row_id, secret))
            return
        column = self._column(mapper)
        if not column.nullable:
            raise NoRowId(
                f"{column} is NOT NULL, and the new row has no id that its value could be bound to",
                "give the object its id before the flush (a UUID, a sequence's next value), or let the column be NULL",
            )
        setattr(instance, self._attribute, None)

    def _after_insert(self, mapper: Mapper[Any], connection: Connection, instance: Any) -> None:
        secret = self._waiting(instance)
        if secret is None or inspect(instance).dict.get(self._attribute) is not None:
            return
        row_id = mapper.primary_key_from_instance(instance)[0]
        envelope = self._seal(instance, row_id, secret)
        column = self._column(mapper)
        [key] = column.table.primary_key.columns
        connection.execute(update(column.table).where(key == row_id).values({column: envelope}))
        set_committed_value(instance, self._attribute, envelope)

    def _before_update(self, mapper: Mapper[Any], connection: Connection, instance: Any) -> None:
        value = inspect(instance).dict.get(self._attribute)
        row_id = mapper.primary_key_from_instance(instance)[0]
        if value is not None and self._attribute in inspect(instance).committed_state:
            self._check_table(mapper, connection)
        if isinstance(value, _Unsealed):
            setattr(instance, self._attribute, self._seal(instance, row_id, value.secret))
        elif value is not None and self._attribute in inspect(instance).committed_state:
            self._check_belongs(instance, row_id, value)
        elif not self._same_row(instance, row_id):
            self._bind_anew(instance, row_id)

    def _bind_anew(self, instance: Any, row_id: object) -> None:
        """The row gets another id, in which the bytes of the one before would open for nobody."""
        if (value := getattr(instance, self._attribute)) is not None:
            setattr(instance, self._attribute, self._seal(instance, row_id, self._open(instance, value)))
        elif self._former is not None and (secret := self._get_former(instance, self._former)) is not None:
            # It may have been moved since it was loaded, and then it is bound to the id before.
            self._set(instance, secret)
            setattr(instance, self._attribute, self._seal(instance, row_id, secret))

    def _waiting(self, instance: Any) -> Secret | None:
        return _WAITING.get(inspect(instance), {}).get(self._attribute)

    def _forget(self, instance: Any | None, *_: Any) -> None:
        if instance is not None:  # "expire" tells also of one that is gone already, which its session alone had held
            _WAITING.get(inspect(instance), {}).pop(self._attribute, None)

    # ---------------------------------------------------------------------------------------------------------- cells

    def _seal(self, instance: Any, row_id: object, secret: Secret) -> bytes:
        return self._keys.encrypt(self._cell(instance, row_id, self._attribute), secret)

    def _open(self, instance: Any, value: bytes) -> Secret:
        return self._keys.decrypt(self._cell(instance, _stored_id(instance), self._attribute), bytes(value))

    def _check_table(self, mapper: Mapper[Any], connection: Connection) -> None:
        """That the statement goes to the table whose name is bound. Reading needs no check: it fails for another name."""
        table, schemas = self._column(mapper).table, connection.get_execution_options().get("schema_translate_map") or {}
        schema = getattr(table, "schema", None)
        if self._table is None and schemas.get(schema, schema) != schema:
            raise ColumnError(
                f"schema_translate_map sends {table} to another schema, and values are bound to the table's name without it: "
                "they would open in every such schema",
                "give each schema models of its own, or, if that may be so, the name for all to sealed(…, table=…)",
            )

    def _check_belongs(self, instance: Any, row_id: object, value: bytes) -> None:
        if row_id is not None:
            self._keys.decrypt(self._cell(instance, row_id, self._attribute), bytes(value))
            return
        raise NoRowId(
            f"a new row would take another row's value of {type(instance).__name__}.{self.__name__}",
            "assign a Secret to the attribute, not bytes to its column",
        )

    def _cell(self, instance: Any, row_id: object, attribute: str) -> Cell:
        mapper: Mapper[Any] = inspect(instance).mapper
        column: Column[Any] = mapper.attrs[attribute].columns[0]
        return Cell(self._table or str(column.table), column.name, _spelt(row_id, column))

    def _same_row(self, instance: Any, row_id: object) -> bool:
        stored = _stored_id(instance)
        return row_id == stored or self._cell(instance, row_id, self._attribute) == self._cell(
            instance, stored, self._attribute
        )

    def _column(self, mapper: Mapper[Any]) -> Column[Any]:
        column: Column[Any] = mapper.attrs[self._attribute].columns[0]
        return column


@event.listens_for(Mapper, "after_mapper_constructed")
def _tell_what_is_mapped(mapper: Mapper[Any], class_: type[Any]) -> None:
    """Whichever way they came: in the class's body, from a mixin or a `declared_attr`, or put on it before it was mapped."""
    found: dict[str, object] = {}
    for each in class_.__mro__:
        found = {**vars(each), **found}
    for name, value in found.items():
        if isinstance(value, _Sealed):
            value.mapped(mapper, name)


def _stored_id(instance: Any) -> object:
    """The id of the row that the object was loaded from; of a new object, the one that was given to it."""
    state = inspect(instance)
    key = state.identity if state.has_identity else state.mapper.primary_key_from_instance(instance)
    return key[0]


def _spelt(row_id: object, column: Column[Any]) -> str:
    """As `id::text` in PostgreSQL is, by which a restore test knows the row."""
    keys = list(column.table.primary_key.columns)
    if len(keys) != 1:
        raise NoRowId(f"the primary key of {column.table} is not one column", "an encrypted value is bound to the id of a row")
    if isinstance(row_id, bool) or not isinstance(row_id, int | str | UUID):
        raise NoRowId(
            f"the row of {column} has no id yet, or one that is no number, text or UUID", "flush the session before you read it"
        )
    if isinstance(row_id, str) and isinstance(keys[0].type, Uuid):
        try:
            return str(UUID(row_id))
        except ValueError:
            raise NoRowId(f"the id of a row of {column} is no UUID", "give the object a UUID for its id") from None
    if isinstance(row_id, str) and isinstance(keys[0].type, Integer):
        try:
            return str(int(row_id))  # '0007', ' +7' and, from PostgreSQL 16 on, '0_7' are 7 there too
        except ValueError:
            raise NoRowId(f"the id of a row of {column} is no whole number", "give the object an int for its id") from None
    return str(row_id)
