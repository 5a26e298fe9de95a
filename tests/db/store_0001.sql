-- A store as the first schema held it: two specs, of which `indexed` has an index; of three pictures
-- one is shown, one has failed and one has vanished.
INSERT INTO patchstore.feature_spec (name, digest, recipe, dim, metric, distance_operator, weights_source)
VALUES ('indexed', 'd1', '{"backbone": "tiny"}', 3, 'cosine', '<=>', 'nowhere'),
       ('plain', 'd2', '{"backbone": "tiny"}', 2, 'l2', '<->', 'nowhere');

CREATE TABLE patchstore.patch_feature_s1 PARTITION OF patchstore.patch_feature FOR VALUES IN (1);
CREATE TABLE patchstore.patch_feature_s2 PARTITION OF patchstore.patch_feature FOR VALUES IN (2);
ALTER TABLE patchstore.patch_feature_s1 ADD CONSTRAINT ck_dim CHECK (vector_dims(embedding) = 3);
ALTER TABLE patchstore.patch_feature_s2 ADD CONSTRAINT ck_dim CHECK (vector_dims(embedding) = 2);

INSERT INTO patchstore.source (root) VALUES ('/photos');
INSERT INTO patchstore.image (sha256, size_bytes, width, height)
SELECT sha256(name::bytea), 10, 100, 80 FROM unnest(ARRAY['a', 'b', 'c']) name;
INSERT INTO patchstore.image_location (source_id, uri, size_bytes, mark, image_id, vanished_at, metadata)
VALUES (1, '/photos/a.jpg', 10, 'mark', 1, NULL, '{"shelf": 3}'),
       (1, '/photos/b.jpg', 10, 'mark', 2, NULL, '{}'),
       (1, '/photos/c.jpg', 10, 'mark', 3, now(), '{}');
INSERT INTO patchstore.ingest_run (source_id, spec_id, state, host, finished_at, summary)
VALUES (1, 1, 'completed_with_errors', 'here', now(), '{"found": 3}');
INSERT INTO patchstore.extraction (spec_id, image_id, state, visible, fence, run_id, attempts, error, patch_count)
VALUES (1, 1, 'done', true, nextval('patchstore.fence_seq'), 1, 1, NULL, 2),
       (1, 2, 'failed', false, nextval('patchstore.fence_seq'), 1, 1, 'the file is empty (0 bytes)', NULL),
       (1, 3, 'done', false, nextval('patchstore.fence_seq'), 1, 1, NULL, 1),
       (2, 1, 'done', true, nextval('patchstore.fence_seq'), 1, 1, NULL, 1);
INSERT INTO patchstore.patch_feature (spec_id, image_id, x, y, width, height, scale, embedding)
VALUES (1, 1, 0, 0, 8, 8, 1, '[1,0,0]'),
       (1, 1, 8, 0, 8, 8, 1, '[0,1,0]'),
       (1, 3, 0, 0, 8, 8, 1, '[1,0,0]'),
       (2, 1, 0, 0, 8, 8, 1, '[3,4]');

CREATE INDEX patch_feature_s1_hnsw ON patchstore.patch_feature_s1
 USING hnsw ((embedding::halfvec(3)) halfvec_cosine_ops) WITH (m = 16, ef_construction = 200);
