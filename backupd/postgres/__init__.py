"""PostgreSQL: everything that speaks to a server or runs its programs, and nothing else in backupd does.

What psycopg and the libpq programs raise or print stays in here: what leaves is a value, a Command or an error of backupd's.
"""
