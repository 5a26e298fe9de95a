-- One word for how a URI begins; failed images by an index.

-- By its first 255 characters ix_image_location_prefix finds it. The planner puts the body in place of
-- the call, and so sees that.
CREATE FUNCTION patchstore.begins_with(uri text, prefix text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT "left"(uri, 255) ^@ "left"(prefix, 255) AND uri ^@ prefix
$$;

REVOKE ALL ON FUNCTION patchstore.begins_with(text, text) FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        GRANT EXECUTE ON FUNCTION patchstore.begins_with(text, text) TO patchstore_reader;
    END IF;
END $$;

-- What filter and prefix ask of a location.
CREATE OR REPLACE FUNCTION patchstore.narrowing_sql(q patchstore.question) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (q).filter IS NULL THEN ''
                ELSE ' AND l.metadata @> $4 AND l.metadata <> ''{}''' END
        || CASE WHEN (q).prefix IS NULL THEN '' ELSE ' AND patchstore.begins_with(l.uri, $5)' END
$$;

-- Failed images are few, and were found by reading the whole ledger. One that is done has no entry.
CREATE INDEX ix_extraction_failed ON patchstore.extraction (spec_id) WHERE state = 'failed';
