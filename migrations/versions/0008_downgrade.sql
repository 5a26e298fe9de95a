-- The images that are shown at a URI.
CREATE FUNCTION patchstore.images_at(uri text) RETURNS bigint[] LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(DISTINCT i), '{}')
      FROM patchstore.image_location l, LATERAL unnest(ARRAY[l.image_id, l.previous_image_id]) i
     WHERE l.uri = images_at.uri AND l.vanished_at IS NULL AND i IS NOT NULL
$$;

-- The same for an image named by its URI.
CREATE OR REPLACE FUNCTION patchstore.similar_to_patch(
    spec text, image text, x integer, y integer, k integer DEFAULT 10,
    other_images boolean DEFAULT false, exact boolean DEFAULT false, ef_search integer DEFAULT NULL,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql STABLE ROWS 10 AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
    p patchstore.patch_feature := patchstore.find_patch(s, patchstore.images_at(image), x, y);
BEGIN
    IF p.id IS NULL THEN
        PERFORM patchstore.check_built(s),
                patchstore.refuse('patch_unknown', format(
                    'spec "%s" has no patch of %s at %s,%s', spec, image, x, y));
    END IF;
    RETURN QUERY SELECT * FROM patchstore.similar_to_patch(
        spec, p.image_id, p.x, p.y, k, other_images, exact, ef_search, filter, prefix, image_ids,
        touching, max_distance);
END $$;

DROP FUNCTION patchstore.images_at(integer, text);

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
    hits patchstore.hit[] := patchstore.ask_plainly(s, asked);
BEGIN
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
