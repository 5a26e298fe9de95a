"""`patchstore db`: the schema, where the store is, the embedded server."""

import typer

from .console import out, say

app = typer.Typer(help="The database: upgrade its schema, show where it is.", no_args_is_help=True)


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
    out.print(plain.render_as_string(hide_password=False), markup=False)


@app.command()
def stop() -> None:
    """Stop the embedded server, which otherwise keeps running for other programs."""
    from db.server import stop_embedded

    say("stopped" if stop_embedded() else "the embedded server was not running")
