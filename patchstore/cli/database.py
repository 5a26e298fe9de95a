"""`patchstore db` and `stop`: the schema, where the store is, the embedded set-up."""

from typing import Annotated

import typer

from .console import print_line, say

app = typer.Typer(
    help="The database: upgrade its schema, show where it and its programs are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def upgrade() -> None:
    """Create the schema, or bring it up to this version. Safe to run again."""
    from db.migrate import head_revision
    from db.migrate import upgrade as run_upgrade
    from db.server import database_url

    changed = run_upgrade(database_url())
    say(f"schema {head_revision()}: {'upgraded' if changed else 'already up to date'}")


@app.command()
def url() -> None:
    """Print the database's URL, for psql and other programs; starts the embedded server."""
    from db.server import database_url

    plain = database_url().set(drivername="postgresql")
    print_line(plain.render_as_string(hide_password=False))


@app.command("bin")
def programs() -> None:
    """Print the folder of the embedded server's programs: pg_dump, pg_restore, psql."""
    from db.server import program_folder

    print_line(str(program_folder()))


def stop(
    force: Annotated[
        bool, typer.Option("--force", help="Also under what needs them, which then fails.")
    ] = False,
) -> None:
    """Stop what the embedded set-up keeps running: Postgres and the local Prefect server."""
    from db.errors import InUse
    from db.server import is_in_use, stop_embedded
    from db.settings import StoreSettings
    from flows import local_server
    from flows.environment import prefect_home

    home = StoreSettings().resolved_home()
    folder = prefect_home(home)
    if not force and (is_in_use() or (folder.is_dir() and local_server.is_in_use(folder))):
        raise InUse(
            f"a run, a worker or serve still needs them, in {home}; let it end, end it by Ctrl-C, "
            "or give --force: a run fails then within two minutes, and the next one takes up its "
            "work"
        )
    prefect = local_server.stop(folder)
    postgres = stop_embedded()
    for name, stopped in (("Prefect server", prefect), ("Postgres", postgres)):
        say(f"{name}: {'stopped' if stopped else 'was not running'}")
