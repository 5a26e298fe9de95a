-- How widely an index is searched where nobody says.

-- How widely an index of so many rows must be searched for a recall of 0.99: docs/benchmarks.md. 200 at
-- 100,000 rows; at 1,000,000 that lie in heaps of near copies 1,000, but 500 where the graph was built
-- with twice the candidates, as those of many rows are.
CREATE OR REPLACE FUNCTION patchstore.usual_ef_search(spec_id integer) RETURNS integer
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT least(1000, greatest(200, t.reltuples / CASE
                       WHEN 'ef_construction=400' = ANY (i.reloptions) THEN 2000 ELSE 1000 END))::integer
              FROM pg_catalog.pg_class t LEFT JOIN pg_catalog.pg_class i
                ON i.oid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id || '_hnsw')
             WHERE t.oid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id));
END $$;

ALTER FUNCTION patchstore.narrow(patchstore.feature_spec, patchstore.question, double precision)
    RESET plan_cache_mode;
