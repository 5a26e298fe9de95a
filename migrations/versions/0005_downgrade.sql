CREATE OR REPLACE FUNCTION patchstore.narrowing_sql(q patchstore.question) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (q).filter IS NULL THEN ''
                ELSE ' AND l.metadata @> $4 AND l.metadata <> ''{}''' END
        || CASE WHEN (q).prefix IS NULL THEN ''
                ELSE ' AND "left"(l.uri, 255) ^@ "left"($5, 255) AND l.uri ^@ $5' END
$$;

DROP FUNCTION patchstore.begins_with(text, text);

DROP INDEX patchstore.ix_extraction_failed;
