"""What Postgres does for a question: the SQL functions' own statement under EXPLAIN."""

import re
from typing import Any

import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from .search_ways import K, Question

# The parts of patchstore.run_search, which decides by them.
_DECIDE = """
WITH asked AS (
    SELECT s, patchstore.check_question(s, ROW(%(query)s, %(k)s, %(other_than)s, false, 100, NULL,
               %(filter)s, NULL, NULL, NULL, NULL)::patchstore.question) AS q
      FROM patchstore.feature_spec s WHERE s.name = %(spec)s)
SELECT CASE WHEN (q).filter IS NOT NULL
            THEN patchstore.narrow(s, q, patchstore.exact_budget((s).id, 100)) END
  FROM asked
"""
_STATEMENT = """
SELECT patchstore.candidates_sql(s, patchstore.check_question(s, ROW(%(query)s, %(k)s,
           %(other_than)s, false, 100, NULL, %(filter)s, NULL, %(chosen)s, NULL, NULL
       )::patchstore.question), %(chosen)s::bigint[] IS NULL, %(unchecked)s)
  FROM patchstore.feature_spec s WHERE s.name = %(spec)s
"""
# In the order in which the functions number them.
_PARAMETERS = (
    "query)s::vector",
    "other_than)s::bigint[]",
    "chosen)s::bigint[]",
    "filter)s::jsonb",
    "prefix)s::text",
    "candidates)s::integer",
)


def plans(url: str, spec: str, question: Question) -> str:
    """The plan of the statement that finds the candidates, without what is noise in it."""
    asked: dict[str, Any] = {"other_than": None, "filter": None, **question.options}
    values = asked | {"spec": spec, "query": Vector(question.vector), "k": K, "prefix": None}
    values["filter"] = None if values["filter"] is None else Jsonb(values["filter"])
    with psycopg.connect(url) as connection:
        register_vector(connection)
        (values["chosen"],) = _one(connection, _DECIDE, values)
        values["unchecked"] = not question.options
        (statement,) = _one(connection, _STATEMENT, values)
        for number, parameter in enumerate(_PARAMETERS, 1):
            statement = statement.replace(f"${number}", f"(%({parameter})")
        connection.execute("SET LOCAL hnsw.ef_search = 100")
        if not values["unchecked"]:
            connection.execute("SET LOCAL hnsw.iterative_scan = relaxed_order")
        lines = connection.execute(
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF, SUMMARY OFF) " + statement,
            values | {"candidates": K + 5},
        ).fetchall()
    return "\n".join(_short(line) for (line,) in lines)


def _one(connection: "psycopg.Connection[Any]", statement: str, values: dict[str, Any]) -> Any:
    row = connection.execute(statement, values).fetchone()
    assert row is not None
    return row


def _short(line: str) -> str:
    line = re.sub(r"'\[[^]]*\]'", "'[...]'", line)
    return re.sub(r"'\{[^'\"]{20,}\}'", "'{...}'", line)
