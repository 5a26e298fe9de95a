-- Queries too long for float32 are refused where their length matters; they had infinite distances. And
-- images that are ranked by many patches have as many candidates.

-- How many candidates are asked for, to choose k from.
CREATE OR REPLACE FUNCTION patchstore.pool_of(q patchstore.question) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (q).best IS NULL THEN (q).k + greatest(5, (q).k / 2)
                ELSE greatest(500, 20 * (q).k, least(10 * (q).k * least((q).best, 2000), 20000)) END
$$;

-- Answers a question. Where an index stands, and not so few patches are left that comparing them all
-- is cheaper, the index is asked: when only nearness was asked for, first without a look at what is
-- visible, for nearly everything is. Where it brings fewer than k, all are compared.
CREATE OR REPLACE FUNCTION patchstore.run_search(
    s patchstore.feature_spec, asked patchstore.question
) RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan  -- else each call weighs making a new plan, and makes it
AS $$
DECLARE
    q patchstore.question;
    narrowed boolean;
    approximate boolean;
    pool integer;
    chosen bigint[];
    hits patchstore.hit[];
BEGIN
    -- pgvector adds up squares in float32, which hold neither those of 1e20 nor those of 1e-20.
    IF s.metric = 'cosine' THEN
        IF vector_norm(asked.query) NOT BETWEEN 1e-6 AND 1e6 THEN
            asked.query := l2_normalize(asked.query);
        END IF;
    ELSIF vector_norm(asked.query) > 1e18 THEN
        PERFORM patchstore.refuse('query_range', format(
            'the query vector is %s long: beyond 1e18 distances are infinite in float32',
            vector_norm(asked.query)));
    END IF;
    hits := patchstore.ask_plainly(s, asked);
    IF hits IS NOT NULL THEN
        RETURN hits;
    END IF;
    q := patchstore.check_question(s, asked);
    narrowed := q.filter IS NOT NULL OR q.prefix IS NOT NULL OR q.image_ids IS NOT NULL;
    approximate := NOT q.exact AND patchstore.fits_index(s, q.query)
        AND patchstore.is_indexed(s.id);
    pool := patchstore.pool_of(q);
    IF approximate AND narrowed THEN
        chosen := patchstore.narrow(s, q, patchstore.exact_budget(s.id, greatest(q.ef_search, pool)));
        approximate := chosen IS NULL;
    END IF;
    IF approximate THEN
        hits := patchstore.locate_hits(s.id, q, patchstore.ask_index(s, q, pool), false);
        IF q.best IS NOT NULL AND cardinality(hits) < q.k THEN  -- all candidates are of a few images
            hits := patchstore.locate_hits(s.id, q, patchstore.ask_index(s, q, 10 * pool), false);
        END IF;
        approximate := cardinality(hits) = q.k;
    END IF;
    IF NOT approximate THEN
        IF narrowed AND chosen IS NULL THEN
            chosen := patchstore.narrow(s, q, 'Infinity');
        END IF;
        hits := patchstore.locate_hits(s.id, q, patchstore.ask_all(s, q, chosen), true);
    END IF;
    IF hits = '{}' THEN
        PERFORM patchstore.check_built(s);
    END IF;
    IF q.max_distance < 'Infinity' THEN
        hits := ARRAY(SELECT h FROM unnest(hits) h WHERE h.distance <= q.max_distance);
    END IF;
    RETURN hits;
END $$;
