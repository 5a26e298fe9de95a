-- How widely an index of so many rows must be searched for a recall of 0.99: docs/benchmarks.md. 200 at
-- 100,000 rows, 1,000 at 1,000,000 that lie in heaps of ten near copies: of those a search keeps a tenth
-- as many different ones in hand, with whatever the graph was built.
CREATE OR REPLACE FUNCTION patchstore.usual_ef_search(spec_id integer) RETURNS integer
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT least(1000, greatest(200, c.reltuples / 1000))::integer FROM pg_catalog.pg_class c
             WHERE c.oid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id));
END $$;

-- `run_search` keeps plans, and one that is kept is made without the prefix: it can use no index for it
-- and reads all locations.
ALTER FUNCTION patchstore.narrow(patchstore.feature_spec, patchstore.question, double precision)
    SET plan_cache_mode = force_custom_plan;
