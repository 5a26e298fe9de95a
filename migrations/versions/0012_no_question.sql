-- None at all are refused where one would be, and an array may have any bounds.

-- Many questions in one call: k hits for each query, in the order of the queries, which count from 1.
CREATE OR REPLACE FUNCTION patchstore.similar_patches_many(
    spec text, queries vector[], k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, ef_search integer DEFAULT NULL,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS TABLE (query integer, hit patchstore.hit) LANGUAGE plpgsql STABLE AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
    one record;
BEGIN
    IF queries IS NULL THEN
        PERFORM patchstore.refuse('query_null', 'the query vectors are null');
    ELSIF cardinality(queries) = 0 THEN
        PERFORM patchstore.check_built(s);
    END IF;
    FOR one IN SELECT u.query, u.n::integer FROM unnest(queries) WITH ORDINALITY AS u(query, n) LOOP
        RETURN QUERY SELECT one.n, h FROM unnest(patchstore.run_search(s, ROW(
            one.query, k, array_remove(other_than, NULL), coalesce(exact, false), ef_search, NULL,
            filter, prefix, image_ids, touching, max_distance)::patchstore.question)) h;
    END LOOP;
END $$;
