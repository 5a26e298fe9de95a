-- Many questions in one call: k hits for each query, in the order of the queries, which count from 1.
CREATE OR REPLACE FUNCTION patchstore.similar_patches_many(
    spec text, queries vector[], k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, ef_search integer DEFAULT NULL,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS TABLE (query integer, hit patchstore.hit) LANGUAGE plpgsql STABLE AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
BEGIN
    FOR i IN 1 .. coalesce(cardinality(queries), 0) LOOP
        RETURN QUERY SELECT i, h FROM unnest(patchstore.run_search(s, ROW(
            queries[i], k, array_remove(other_than, NULL), coalesce(exact, false), ef_search, NULL,
            filter, prefix, image_ids, touching, max_distance)::patchstore.question)) h;
    END LOOP;
END $$;
