"""What the database sees of an encrypted attribute of SQLAlchemy: a column of encrypted bytes, and whether it is NULL.

Owns the column's type and what a statement may ask of it. Opens no value, and has no key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, Dialect, LargeBinary, TypeDecorator, and_, or_
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.ext.hybrid import Comparator
from sqlalchemy.orm.attributes import QueryableAttribute
from sqlalchemy.sql import operators

from backupd.columns import ColumnError
from backupd.columns.forms import Form, form_of


class NotComparable(ColumnError):
    """The database was asked to compare, sort, select or set what it cannot read."""

    def __init__(self, attribute: str) -> None:
        super().__init__(
            f"{attribute} is encrypted, and the database can only tell whether it is NULL: find the row by another column,"
            " select the object, and read its attribute or assign to it",
            "select(User) in place of select(User.totp_secret), user.totp_secret = … of update(User).values(totp_secret=…)",
        )


class NotLoadable(ColumnError):
    """A loader option was given the attribute, which is no column."""

    def __init__(self, attribute: str, columns: str) -> None:
        super().__init__(
            f"{attribute} is no column: load_only, defer and undefer take {columns}", "these options take columns alone"
        )


class NotSealed(ColumnError, DontWrapMixin):
    """A statement would write something else than an encrypted value. Not wrapped by SQLAlchemy, which would show it."""

    def __init__(self) -> None:
        super().__init__(
            "a statement would write what is not encrypted into a column for encrypted values",
            "assign a Secret to the attribute of the object, and let the session write it",
        )


class Envelope(TypeDecorator[bytes]):
    """LargeBinary (in PostgreSQL BYTEA) that takes encrypted values only; `sealed` puts it in the place of its column's type.

    So a statement that goes around the object writes nothing in clear. It looks at the form, not whether the value opens.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        if value is None:
            return None
        if not isinstance(value, bytes | bytearray | memoryview) or form_of(bytes(value)).form is not Form.AES_256_GCM:
            raise NotSealed
        return bytes(value)


class NullOnly(Comparator[Any]):
    """What a query may know of an encrypted attribute: whether it is NULL."""

    def __init__(self, name: str, columns: list[Any], names: list[str]) -> None:
        super().__init__(columns[0])
        self._name = name
        self._columns = columns
        self._names = names

    @property
    def prop(self) -> NoReturn:  # type: ignore[override]
        """What defer and undefer ask for."""
        model = self._name.partition(".")[0]
        raise NotLoadable(self._name, " and ".join(f"{model}.{name}" for name in self._names))

    def _bulk_dml_setter(self, key: str) -> Callable[..., NoReturn]:
        """What SQLAlchemy asks, from 2.1 on, when a bulk statement names the attribute. Before, it takes no notice of it."""

        def refuse(_: Any) -> NoReturn:
            raise NotComparable(self._name)

        return refuse

    def operate(self, op: Any, *other: Any, **_: Any) -> ColumnElement[Any]:
        if len(other) == 1 and other[0] is None and op in (operators.is_, operators.eq):
            return and_(*(column.is_(None) for column in self._columns))
        if len(other) == 1 and other[0] is None and op in (operators.is_not, operators.ne):
            return or_(*(column.is_not(None) for column in self._columns))
        raise NotComparable(self._name)

    def reverse_operate(self, op: Any, other: Any, **_: Any) -> NoReturn:
        raise NotComparable(self._name)

    def __clause_element__(self) -> NoReturn:
        raise NotComparable(self._name)


def not_loadable(attribute: QueryableAttribute[Any]) -> Any:
    return attribute.comparator.prop  # which raises
