"""Log lines: structlog's and the standard library's through one chain, whose last step is the removal of secrets.

Owns the handler on the root logger, the hooks for exceptions that nobody caught, and what a line looks like. It never shows
local variables, never prints what it could not make safe (a line that fails on its way is replaced by one that says so), and
never raises into the code that logs. Libraries are heard from WARNING on only, also with debug: the debug lines of boto,
urllib3 and gnupg hold signed headers and what passes through pipes.

structlog is imported when the first line is written, because it brings rich along and `backupd --help` has no use for either.
"""

from __future__ import annotations

import functools
import json as jsonlib
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast

from backupd.redact import REDACTED, printable, scrub, scrub_value

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger
    from structlog.typing import Processor

_OURS = "backupd"
_WITHHELD = "a log line was withheld, because it could not be made safe"
_DEEPEST = 20
_FIRST = ("timestamp", "level", "event", "logger")

_Fields = MutableMapping[str, Any]
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def configure(stream: TextIO, *, json: bool, debug: bool) -> None:
    """Send all logging of this process to `stream`, as JSON or for people; may be called again, and then replaces itself.

    With `debug`, our own lines start at DEBUG and exceptions come with their traceback. Takes over the root logger's handlers,
    Python's warnings and the three hooks for exceptions that nobody caught.
    """
    root = logging.getLogger()
    root.handlers = [_Handler(stream, json=json, debug=debug)]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(logging.DEBUG if debug else logging.INFO)
    # It warns of what goes wrong while it takes down a connection that we ourselves cut. What matters of it is raised.
    logging.getLogger("psycopg").setLevel(logging.DEBUG if debug else logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def get(name: str) -> BoundLogger:
    """The logger of a room, as structlog's; costs nothing until it is used.

    Where `configure` was not called (an application imported a room) its lines are scrubbed text in the application's logging.
    """
    return cast("BoundLogger", _Lazy(name if name.split(".")[0] == _OURS else f"{_OURS}.{name}"))


class _Lazy:
    """A structlog logger that is made at each use, which costs little against writing a line."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        import structlog

        logger = structlog.wrap_logger(
            logging.getLogger(self._name),
            processors=[structlog.stdlib.filter_by_level, structlog.contextvars.merge_contextvars, _hand_over],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        return getattr(logger, attribute)


def _hand_over(logger: Any, method: str, fields: _Fields) -> Any:
    """To our handler as fields, to an application's own as text; asked at each line, since `bind` may precede `configure`."""
    import structlog

    if any(isinstance(handler, _Handler) for handler in logging.getLogger().handlers):
        return structlog.stdlib.ProcessorFormatter.wrap_for_formatter(logger, method, fields)
    try:
        return scrub(_for_people(_clean(_explain(None, method, fields, debug=False))))
    except Exception:  # whatever it was: a line that may hold a secret is not printed
        return _WITHHELD


class _Handler(logging.Handler):
    """Writes one safe line for each record, or one that says that it could not."""

    def __init__(self, stream: TextIO, *, json: bool, debug: bool) -> None:
        super().__init__()
        self._stream, self._json, self._debug = stream, json, debug
        self.addFilter(_is_ours_or_important)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._lines.format(record)
            if self._json:
                jsonlib.loads(line)
        except Exception as error:  # whatever went wrong, the event itself may hold a secret, and so may the error's message
            line = self._withheld(record, error)
        self._write(line + "\n")

    @functools.cached_property
    def _lines(self) -> logging.Formatter:
        import structlog

        # Whoever uses structlog without `get` comes the same way, and not straight to standard output.
        before: list[Processor] = [structlog.contextvars.merge_contextvars]
        structlog.configure(
            processors=[structlog.stdlib.filter_by_level, *before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _origin,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                functools.partial(_explain, debug=self._debug),
                lambda _logger, _method, fields: _clean(fields),
                lambda _logger, _method, fields: _for_machines(fields) if self._json else _for_people(fields),
                lambda _logger, _method, line: scrub(str(line)),
            ],
        )

    def _withheld(self, record: logging.LogRecord, error: Exception) -> str:
        fields = {"level": record.levelname.lower(), "event": _WITHHELD, "failure": type(error).__name__}
        return _for_machines(fields) if self._json else _for_people(fields)

    def _write(self, text: str) -> None:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a terminal of another encoding
                self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
            self._stream.flush()
        except (OSError, ValueError):
            pass  # the stream is closed or its reader is gone: there is nowhere left to say so


def _is_ours_or_important(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == _OURS or record.levelno >= logging.WARNING


# ---------------------------------------------------------------------------------------------------------- the chain


def _origin(_logger: object, _method: str, fields: _Fields) -> _Fields:
    record: logging.LogRecord = fields["_record"]
    fields["level"], fields["logger"] = record.levelname.lower(), record.name
    return fields


def _explain(_logger: object, _method: str, fields: _Fields, *, debug: bool) -> _Fields:
    """An exception as text: what and its hint; with debug the traceback, without local variables."""
    found = _exc_info(fields.pop("exc_info", None))
    fields.pop("stack_info", None)
    if found is None:
        return fields
    kind, error, trace = found
    fields["error"] = _without_parameters(str(scrub_value("error", error)), error)
    fields["error_type"] = kind.__name__
    if hint := getattr(error, "hint", None):
        fields["hint"] = hint
    if debug:
        text = "".join(traceback.TracebackException(kind, error, trace, capture_locals=False).format())
        fields["exception"] = _without_parameters(text.rstrip(), error)
    return fields


def _exc_info(value: object) -> _ExcInfo | None:
    if isinstance(value, BaseException):
        return type(value), value, value.__traceback__
    found = value if isinstance(value, tuple) else sys.exc_info() if value else None
    return cast(_ExcInfo, found) if found and found[1] is not None else None


def _without_parameters(text: str, error: BaseException | None) -> str:
    """SQLAlchemy's errors carry the values of the statement as `params`, and PostgreSQL's repeat them in their details."""
    for _ in range(_DEEPEST):
        if error is None:
            break
        for value in sorted(_texts(getattr(error, "params", None), 0), key=len, reverse=True):
            text = text.replace(value, REDACTED)
        error = error.__cause__ or error.__context__
    return text


def _texts(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str | bytes) and len(value) > 3:
        yield value if isinstance(value, str) else repr(value)[2:-1]
    elif isinstance(value, Mapping | list | tuple) and depth < 4:
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each, depth + 1)


def _clean(fields: Mapping[str, object]) -> dict[str, object]:
    order = [key for key in _FIRST if key in fields] + [key for key in fields if key not in _FIRST]
    return {scrub(str(key)): scrub_value(str(key), fields[key]) for key in order}


def _for_machines(fields: Mapping[str, object]) -> str:
    return jsonlib.dumps(fields, ensure_ascii=True)


def _for_people(fields: Mapping[str, object]) -> str:
    """`2026-11-24T02:00:00Z info     backup is complete  source=clinic parts=3`, and a traceback on lines of its own."""
    rest = {key: value for key, value in fields.items() if key not in {*_FIRST, "exception"}}
    line = (
        f"{_short(fields.get('timestamp', ''))} {fields.get('level', ''):8} {printable(str(fields.get('event', '')))}".strip()
    )
    if rest:
        line += "  " + " ".join(f"{printable(key)}={_quoted(value)}" for key, value in rest.items())
    if trace := fields.get("exception"):
        line += "".join(f"\n    {printable(each)}" for each in str(trace).splitlines())
    return line


def _short(timestamp: object) -> str:
    return f"{str(timestamp)[:19]}Z" if timestamp else ""


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
    text = printable(text)
    return (
        jsonlib.dumps(text, ensure_ascii=False) if isinstance(value, str) and (not text or set(text) & set(" \"'=")) else text
    )


# --------------------------------------------------------------------------------------- exceptions that nobody caught


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(_OURS).critical("an exception that nobody caught", exc_info=(kind, error, trace))


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    logging.getLogger(_OURS).critical(
        "an exception that nobody caught, in a thread", exc_info=(type(error), error, error.__traceback__)
    )


def _unraisable(arguments: sys.UnraisableHookArgs) -> None:
    error = arguments.exc_value  # `object` and its repr stay out of it: they may be anything
    if error is not None:
        logging.getLogger(_OURS).error(
            "an exception where none can be raised", exc_info=(type(error), error, arguments.exc_traceback)
        )
