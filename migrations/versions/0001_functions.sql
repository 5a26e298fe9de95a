-- What applications call. Every function runs with the caller's rights (security invoker) and reads
-- the partitioned parent with a literal spec_id, so that only one spec's partition is ever touched.

CREATE TYPE patchstore.hit AS (
    patch_id  bigint,
    image_id  bigint,
    uri       text,
    x         integer,
    y         integer,
    width     integer,
    height    integer,
    scale     real,
    distance  double precision,
    metadata  jsonb
);

-- A spec's images are visible when they are done and some live location shows them: as its content,
-- or as its previous content while the new one is still being computed.
CREATE FUNCTION patchstore.refresh_visibility(image_ids bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Lock first, decide in a later statement with a fresh snapshot: a scan and a writer that meet
    -- on one image are put in order by this row.
    PERFORM 1 FROM patchstore.extraction
      WHERE image_id = ANY (image_ids) ORDER BY image_id, spec_id FOR UPDATE;
    UPDATE patchstore.extraction e SET visible = v.visible
      FROM (
        SELECT t.spec_id, t.image_id, t.state = 'done' AND EXISTS (
            SELECT FROM patchstore.image_location l
              WHERE l.image_id = t.image_id AND l.vanished_at IS NULL
            UNION ALL
            SELECT FROM patchstore.image_location l
              LEFT JOIN patchstore.extraction n
                ON n.spec_id = t.spec_id AND n.image_id = l.image_id
              WHERE l.previous_image_id = t.image_id AND l.vanished_at IS NULL
                AND coalesce(n.state, 'pending') IN ('pending', 'leased')
        ) AS visible
        FROM patchstore.extraction t WHERE t.image_id = ANY (image_ids)
      ) v
      WHERE e.spec_id = v.spec_id AND e.image_id = v.image_id AND e.visible <> v.visible;
END $$;

CREATE FUNCTION patchstore.find_spec(spec text) RETURNS patchstore.feature_spec
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found patchstore.feature_spec;
BEGIN
    SELECT * INTO found FROM patchstore.feature_spec f WHERE f.name = spec;
    IF found.id IS NULL THEN
        RAISE EXCEPTION 'no spec named "%"; known: %', spec,
            coalesce((SELECT string_agg(name, ', ' ORDER BY name) FROM patchstore.feature_spec), 'none')
            USING ERRCODE = 'P0002';
    END IF;
    RETURN found;
END $$;

-- Whether a valid HNSW index stands on the spec's partition.
CREATE FUNCTION patchstore.is_indexed(spec_id integer) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_am a ON a.oid = c.relam
          WHERE i.indrelid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id)
            AND a.amname = 'hnsw' AND i.indisvalid)
$$;

CREATE FUNCTION patchstore.check_question(s patchstore.feature_spec, query vector, k integer)
RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query vector is null' USING ERRCODE = '22023';
    END IF;
    IF vector_dims(query) <> s.dim THEN
        RAISE EXCEPTION 'the query vector has % dimensions, spec "%" has %',
            vector_dims(query), s.name, s.dim USING ERRCODE = '22023';
    END IF;
    IF s.metric = 'cosine' AND vector_norm(query) = 0 THEN
        RAISE EXCEPTION 'the query vector is zero: it has no direction to compare by cosine'
            USING ERRCODE = '22023';
    END IF;
    IF k IS NULL OR k < 1 OR k > 10000 THEN
        RAISE EXCEPTION 'k is %, expected 1 to 10000', coalesce(k::text, 'null')
            USING ERRCODE = '22023';
    END IF;
END $$;

-- The candidate patches of a question, as text: $1 query vector, $2 excluded images, $3 how many.
-- Approximate: in the order of the halfvec index. Exact: "+ 0" keeps every index out.
CREATE FUNCTION patchstore.candidates_sql(s patchstore.feature_spec, approximate boolean)
RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format(
        'SELECT p.id, p.image_id, p.x, p.y, p.width, p.height, p.scale,
                (p.embedding %2$s $1)::double precision AS distance
           FROM patchstore.patch_feature p
          WHERE p.spec_id = %1$s
            AND NOT p.image_id = ANY ($2)
            AND (SELECT e.visible FROM patchstore.extraction e
                  WHERE e.spec_id = %1$s AND e.image_id = p.image_id)
          ORDER BY ', s.id, s.distance_operator)
        || CASE WHEN approximate
           THEN format('(p.embedding::halfvec(%1$s)) %2$s ($1::halfvec(%1$s))',
                       s.dim, s.distance_operator)
           ELSE format('(p.embedding %s $1) + 0, p.id', s.distance_operator) END
        || ' LIMIT $3'
$$;

-- The k nearest patches, as text: parameters as above, $4 is k. Re-ranked exactly in float32.
CREATE FUNCTION patchstore.patches_sql(s patchstore.feature_spec, approximate boolean)
RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format(
        'WITH candidate AS MATERIALIZED (%s),
              nearest AS (SELECT * FROM candidate ORDER BY distance, id LIMIT $4)
         SELECT n.id, n.image_id, l.uri, n.x, n.y, n.width, n.height, n.scale, n.distance, l.metadata
           FROM nearest n
           CROSS JOIN LATERAL patchstore.shown_location(%s, n.image_id) l
          ORDER BY n.distance, n.id', patchstore.candidates_sql(s, approximate), s.id)
$$;

-- The k images with the nearest mean of their best $5 patches, as text. Approximate: the pool only
-- picks the images; each image's best patches are then found exactly among all of its patches.
-- Exact: every patch is a candidate ($3 is null), so every image is ranked.
CREATE FUNCTION patchstore.images_sql(s patchstore.feature_spec, approximate boolean)
RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format(
        'WITH candidate AS MATERIALIZED (%s),
              measured AS (%s),
              ranked AS (
                SELECT p.*, row_number() OVER (PARTITION BY p.image_id ORDER BY p.distance, p.id) AS rank
                  FROM measured p),
              best AS (
                SELECT image_id, avg(distance) AS mean FROM ranked WHERE rank <= $5
                 GROUP BY image_id ORDER BY 2, 1 LIMIT $4)
         SELECT r.id, r.image_id, l.uri, r.x, r.y, r.width, r.height, r.scale, b.mean, l.metadata
           FROM best b JOIN ranked r ON r.image_id = b.image_id AND r.rank = 1
           CROSS JOIN LATERAL patchstore.shown_location(%s, r.image_id) l
          ORDER BY b.mean, r.image_id',
        patchstore.candidates_sql(s, approximate),
        CASE WHEN approximate THEN format(
            'SELECT f.id, f.image_id, f.x, f.y, f.width, f.height, f.scale,
                    (f.embedding %s $1)::double precision AS distance
               FROM (SELECT image_id FROM candidate GROUP BY image_id
                      ORDER BY min(distance), image_id LIMIT 4 * $4) picked
               JOIN patchstore.patch_feature f
                 ON f.spec_id = %s AND f.image_id = picked.image_id', s.distance_operator, s.id)
        ELSE 'SELECT * FROM candidate' END,
        s.id)
$$;

-- One live location of a visible image: as its content, else as its previous content.
CREATE FUNCTION patchstore.shown_location(spec integer, shown bigint)
RETURNS TABLE (uri text, metadata jsonb) LANGUAGE sql STABLE ROWS 1 AS $$
    (SELECT l.uri, l.metadata FROM patchstore.image_location l
      WHERE l.image_id = shown AND l.vanished_at IS NULL ORDER BY l.id LIMIT 1)
    UNION ALL
    (SELECT l.uri, l.metadata FROM patchstore.image_location l
       LEFT JOIN patchstore.extraction n ON n.spec_id = spec AND n.image_id = l.image_id
      WHERE l.previous_image_id = shown AND l.vanished_at IS NULL
        AND coalesce(n.state, 'pending') IN ('pending', 'leased') ORDER BY l.id LIMIT 1)
    LIMIT 1
$$;

-- Collects the hits of a question: approximate where an index stands, exact otherwise, and exact
-- too where the approximate way found fewer than k. `pool` is the number of candidates.
CREATE FUNCTION patchstore.run_search(
    s patchstore.feature_spec, by_image boolean, query vector, k integer,
    other_than bigint[], exact boolean, pool integer, best integer
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    hits patchstore.hit[];
    statement text;
    approximate boolean := NOT exact AND patchstore.is_indexed(s.id);
    old_ef text := current_setting('hnsw.ef_search', true);
    old_scan text := current_setting('hnsw.iterative_scan', true);
    old_tuples text := current_setting('hnsw.max_scan_tuples', true);
BEGIN
    IF approximate THEN
        PERFORM set_config('hnsw.ef_search', least(pool, 1000)::text, true),
                set_config('hnsw.iterative_scan', 'relaxed_order', true),
                set_config('hnsw.max_scan_tuples', greatest(20000, 20 * pool)::text, true);
    END IF;
    LOOP
        statement := CASE WHEN by_image THEN patchstore.images_sql(s, approximate)
                          ELSE patchstore.patches_sql(s, approximate) END;
        EXECUTE format('SELECT array_agg(h) FROM (%s) h', format(
            'SELECT ROW(r.*)::patchstore.hit AS h FROM (%s) r', statement))
            INTO hits
            USING query, other_than,
                  CASE WHEN approximate OR NOT by_image THEN pool END, k, best;
        EXIT WHEN NOT approximate OR cardinality(hits) >= k;
        approximate := false;
    END LOOP;
    IF old_ef IS NOT NULL THEN  -- the caller's transaction keeps its own settings
        PERFORM set_config('hnsw.ef_search', old_ef, true),
                set_config('hnsw.iterative_scan', old_scan, true),
                set_config('hnsw.max_scan_tuples', old_tuples, true);
    END IF;
    RETURN QUERY SELECT u.* FROM unnest(hits) u;
END $$;

CREATE FUNCTION patchstore.similar_patches(
    spec text, query vector, k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, ef_search integer DEFAULT 100
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE ROWS 10 AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
BEGIN
    PERFORM patchstore.check_question(s, query, k);
    RETURN QUERY SELECT * FROM patchstore.run_search(
        s, false, query, k, coalesce(array_remove(other_than, NULL), '{}'), exact,
        least(greatest(ef_search, 2 * k), 100000), 0);
END $$;

CREATE FUNCTION patchstore.similar_images(
    spec text, query vector, k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, best integer DEFAULT 3
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE ROWS 10 AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
BEGIN
    PERFORM patchstore.check_question(s, query, k);
    IF best IS NULL OR best < 1 THEN
        RAISE EXCEPTION 'best is %, expected 1 or more', coalesce(best::text, 'null')
            USING ERRCODE = '22023';
    END IF;
    RETURN QUERY SELECT * FROM patchstore.run_search(
        s, true, query, k, coalesce(array_remove(other_than, NULL), '{}'), exact,
        greatest(500, 20 * k), best);
END $$;

CREATE VIEW patchstore.specs AS
    SELECT name, digest, recipe, dim, metric, created_at,
           patchstore.is_indexed(id) AS indexed
      FROM patchstore.feature_spec;

CREATE VIEW patchstore.images AS
    SELECT i.id AS image_id, l.uri, i.width, i.height, encode(i.sha256, 'hex') AS sha256,
           l.metadata, l.first_seen, l.last_seen
      FROM patchstore.image_location l JOIN patchstore.image i ON i.id = l.image_id
     WHERE l.vanished_at IS NULL;

CREATE VIEW patchstore.patches AS
    SELECT f.name AS spec, p.id AS patch_id, p.image_id, p.x, p.y, p.width, p.height, p.scale,
           p.embedding
      FROM patchstore.patch_feature p
      JOIN patchstore.feature_spec f ON f.id = p.spec_id
      JOIN patchstore.extraction e ON e.spec_id = p.spec_id AND e.image_id = p.image_id
     WHERE e.visible;

-- A role that may ask and never write. Roles belong to the whole cluster: another database may have
-- made it already, and a role without CREATEROLE leaves it to the administrator.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        CREATE ROLE patchstore_reader NOLOGIN;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'no right to create the role patchstore_reader';
    WHEN duplicate_object OR unique_violation THEN
        NULL;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA patchstore FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        GRANT USAGE ON SCHEMA patchstore TO patchstore_reader;
        GRANT SELECT ON patchstore.feature_spec, patchstore.image, patchstore.image_location,
            patchstore.extraction, patchstore.patch_feature, patchstore.specs, patchstore.images,
            patchstore.patches TO patchstore_reader;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA patchstore TO patchstore_reader;
        REVOKE EXECUTE ON FUNCTION patchstore.refresh_visibility(bigint[]) FROM patchstore_reader;
    END IF;
END $$;
