"""Whatever happens in whatever order: the counts add up, and rows exist where it says done."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from db import ledger, reports
from db.prune import prune

URIS = ("a", "b", "c")
CONTENTS = ("1", "2", "3", None)

EVERYTHING = (
    "patchstore.patch_feature, patchstore.extraction, patchstore.image_location, "
    "patchstore.image, patchstore.ingest_run, patchstore.source"
)


class Ledger(RuleBasedStateMachine):
    """Runs of two specs over one folder, with deaths, late writers and operators in between."""

    store = None
    specs = ()

    def __init__(self):
        super().__init__()
        self.store.sql(f"TRUNCATE {EVERYTHING}")
        for spec in self.specs:
            self.store.run(spec)
            self.store.ingest(spec, {"a": "1", "b": "2"})
        self.held = []
        self.files = {"a": "1", "b": "2"}

    def pick(self, number):
        return self.held[number % len(self.held)] if self.held else (None, None)

    @rule(
        spec=st.integers(0, 1),
        files=st.dictionaries(st.sampled_from(URIS), st.sampled_from(CONTENTS)),
        complete=st.booleans(),
        touched=st.booleans(),
    )
    def scan(self, spec, files, complete, touched):
        counts = self.store.scan(self.specs[spec], files, complete=complete, touched=touched)
        assert counts.found == len(files)
        assert counts.found == counts.new + counts.changed + counts.moved + counts.unchanged
        self.files = {**({} if complete else self.files), **files}

    @rule(spec=st.integers(0, 1), uri=st.sampled_from(URIS), content=st.sampled_from(CONTENTS))
    def change(self, spec, uri, content):
        self.scan(spec, {**self.files, uri: content}, complete=True, touched=False)

    @rule(spec=st.integers(0, 1), images=st.integers(1, 3))
    def lease(self, spec, images):
        leases = self.store.lease(self.specs[spec], images=images)
        self.held += [(self.specs[spec], lease) for lease in leases]

    @rule(which=st.integers(0, 9), patches=st.integers(1, 4), twice=st.booleans())
    def write(self, which, patches, twice):
        spec, lease = self.pick(which)
        if lease is None:
            return
        for _ in range(1 + twice):
            lost = self.store.write(spec, lease, self.store.vectors(patches, spec.dim))
        if lost:
            self.held.remove((spec, lease))

    @rule(which=st.integers(0, 9), reason=st.sampled_from(["broken", f"{ledger.UNREAD}disk", None]))
    def give_up(self, which, reason):
        _, lease = self.pick(which)
        if lease is not None and reason is None:
            ledger.release_image(self.store.engine, lease)
        elif lease is not None:
            ledger.fail_image(self.store.engine, lease, reason)

    @rule(spec=st.integers(0, 1), cap=st.integers(1, 3))
    def die_and_reclaim(self, spec, cap):
        """No run here holds its lock: each is dead, though its late writers go on."""
        ledger.reclaim(self.store.engine, self.specs[spec], cap)

    @rule(named=st.booleans())
    def retry(self, named):
        ledger.retry_failed(self.store.engine, "first" if named else None, None)

    @rule()
    def prune(self):
        prune(self.store.engine)

    @invariant()
    def counts_add_up(self):
        for spec in self.specs:
            status = self.store.status(spec)
            assert status.found == len(self.files)
            assert status.found == status.done + status.failed + status.pending + status.leased

    @invariant()
    def rows_exist_where_it_says_done(self):
        stored = self.store.sql(
            "SELECT spec_id, image_id, count(*) FROM patchstore.patch_feature GROUP BY 1, 2"
        )
        done = self.store.sql(
            "SELECT spec_id, image_id, patch_count FROM patchstore.extraction WHERE state = 'done'"
        )
        assert sorted(stored) == sorted(done)

    @invariant()
    def searches_show_what_the_files_say(self):
        assert self.store.visible() == self.store.expected_visible()
        shown = set().union(*(self.store.shown(spec) for spec in self.specs))
        assert shown <= self.files.keys()

    @invariant()
    def every_visible_patch_has_a_file(self):
        shown = sum(
            len(rows.boxes)
            for spec in self.specs
            for rows in reports.patch_matrix(self.store.engine, spec)
        )
        assert shown == self.store.scalar("SELECT count(*) FROM patchstore.patches")


def test_no_order_of_events_breaks_the_ledger(store):
    class Here(Ledger):
        pass

    Here.store = store
    Here.specs = (store.spec("first"), store.spec("second", dim=8))
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=30,
            phases=[Phase.generate],  # twenty steps can be read; making them fewer takes minutes
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
