-- Who may only read can run the commands and the service that only read, too.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA patchstore TO patchstore_reader;
        GRANT SELECT ON ALL SEQUENCES IN SCHEMA patchstore TO patchstore_reader;  -- for /metrics
    END IF;
END $$;

-- An empty answer means something else while nothing is searchable yet.
CREATE OR REPLACE FUNCTION patchstore.check_built(s patchstore.feature_spec) RETURNS void
LANGUAGE plpgsql STABLE AS $$
DECLARE
    waiting bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM patchstore.extraction e WHERE e.spec_id = s.id AND e.visible) THEN
        SELECT count(*) INTO waiting FROM patchstore.extraction e
          WHERE e.spec_id = s.id AND e.state IN ('pending', 'leased');
        IF waiting > 0 THEN
            PERFORM patchstore.refuse('spec_building', format(
                'spec "%s" is still building: none of its %s images is done yet; ask again in a '
                'while, or where no run is at it: patchstore backfill --spec %s',
                s.name, waiting, s.name));
        END IF;
    END IF;
END $$;
