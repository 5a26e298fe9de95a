"""`patchstore spec`: immutable recipes of feature vectors."""

import re
from typing import Annotated

import typer

from patchstore.errors import PatchstoreError

from .console import confirm, print_json, print_line, print_table, say

app = typer.Typer(
    help="Feature specs: add, list, show, promote, remove.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Backbone = Annotated[str, typer.Option(help="A torchvision classification network.")]
Weights = Annotated[str, typer.Option(help="A torchvision weights name, a FILE, or random:SEED.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _new_name(name: str) -> str:
    """A name that is seen in a table and can be typed. Raises PatchstoreError."""
    if not re.fullmatch(r"\S{1,200}", name) or not name.isprintable():
        raise PatchstoreError(
            f"{name[:200]!r} is no name of a spec: give 1 to 200 characters, "
            "printable and without spaces"
        )
    return name


@app.command()
def add(
    name: Annotated[str, typer.Argument(callback=_new_name, help="Name of the new spec.")],
    backbone: Backbone = "resnet18",
    weights: Weights = "IMAGENET1K_V1",
    layer: Annotated[
        str, typer.Option(help="Node to cut at; penultimate is what enters the classifier.")
    ] = "penultimate",
    pooling: Annotated[
        str | None, typer.Option(help="For --layer: avg, max, gem or flatten.  [default: avg]")
    ] = None,
    patch_size: Annotated[int, typer.Option(help="Side of a patch, pixels.")] = 224,
    stride: Annotated[int, typer.Option(help="Step between patches, pixels.")] = 112,
    edge: Annotated[
        str,
        typer.Option(help="drop: whole patches only; cover: shift the last inward; pad: reflect."),
    ] = "cover",
    scale: Annotated[
        list[float] | None, typer.Option(help="Scale to see the image at; repeat for more.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Side that patches are resized to.  [default: as needed]")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="cosine (vectors are L2-normalised), l2 or ip.")
    ] = "cosine",
    mode: Annotated[
        str,
        typer.Option(
            help="exact: every patch by itself; dense: pooled from one pass over the image."
        ),
    ] = "exact",
    as_json: Json = False,
) -> None:
    """Add a spec. Adding the same recipe again changes nothing; another one is refused."""
    from extractor.backbone import resolve
    from extractor.spec import Recipe
    from patchstore.store import open_store, register

    engine = open_store()
    resolved = resolve(
        Recipe(
            backbone=backbone,
            weights=weights,
            layer=layer,
            pooling=pooling,
            patch_size=patch_size,
            stride=stride,
            edge=edge,
            scales=tuple(scale or (1.0,)),
            input_size=input_size,
            metric=metric,
            mode=mode,
        )
    )
    stored = register(engine, name, resolved)
    if as_json:
        print_json({"name": stored.name, "digest": stored.digest, **stored.recipe})
        return
    say(f"spec {name}: {backbone}, {stored.dim} dimensions, digest {stored.digest[:12]}")
    say(f"next: patchstore ingest FOLDER --spec {name}")


@app.command("list")
def list_() -> None:
    """List the specs, each with the aliases that stand for it."""
    from db.aliases import list_aliases
    from db.specs import list_specs
    from patchstore.store import open_store

    engine = open_store()
    aliases = list_aliases(engine)
    geometry = ("patch", "stride", "edge", "mode")
    columns = ("name", "backbone", "weights", *geometry, "dim", "metric", "digest", "aliases")
    print_table(
        columns,
        (
            (
                spec.name,
                spec.recipe["backbone"],
                spec.recipe["weights"],
                spec.recipe["patch_size"],
                spec.recipe["stride"],
                spec.recipe["edge"],
                spec.recipe["mode"],
                spec.dim,
                spec.metric.name,
                spec.digest[:12],
                ", ".join(alias for alias, name in aliases.items() if name == spec.name),
            )
            for spec in list_specs(engine)
        ),
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the spec.")], as_json: Json = False
) -> None:
    """Show every field of a spec."""
    from db.specs import get_spec
    from patchstore.store import open_store

    spec = get_spec(open_store(), name)
    fields = {"name": spec.name, "digest": spec.digest, **spec.recipe}
    if as_json:
        print_json(fields)
        return
    shown = fields | {"weights found at": spec.weights_source}
    width = max(map(len, shown)) + 2
    for field, value in shown.items():
        print_line(f"{field:<{width}}{'-' if value is None else value}")


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Spec that searches by the alias will ask.")],
    alias: Annotated[
        str,
        typer.Option(
            "--as", metavar="ALIAS", callback=_new_name, help="A new alias, or one to switch."
        ),
    ] = "live",
    force: Annotated[bool, typer.Option("--force", help="Even where images are missing.")] = False,
) -> None:
    """Let an alias stand for a spec: searches by it switch at once, and back the same way."""
    from db.aliases import promote as run
    from db.specs import get_spec
    from patchstore.store import open_store

    engine = open_store()
    spec = get_spec(engine, name)
    before = run(engine, spec, alias, force=force)
    was = "" if before in (None, spec.name) else f"; it was {before}"
    say(f"{alias} stands for {spec.name} now{was}")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of a spec, or of an alias.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a spec with all of its vectors for good; of an alias only the name."""
    from db.aliases import list_aliases, remove_alias
    from db.prune import remove_spec
    from db.specs import get_spec
    from patchstore.store import open_store

    engine = open_store()
    spec = get_spec(engine, name)
    if name in list_aliases(engine):
        remove_alias(engine, name)
        say(f"{name} is no alias any more; spec {spec.name} is as it was")
        return
    confirm(f"delete spec {name} with all of its vectors, for good?", yes=yes)
    patches = remove_spec(engine, spec)
    say(f"deleted spec {name} with {patches} patches")
