"""Which categories a specialist can be of, known before anything heavy is imported."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.shipped import nearest
from pipeline.taxonomy import Taxonomy


def check_category(category: str, taxonomy: Taxonomy) -> str:
    """The category. Raises InputError, with the nearest right one, if the taxonomy lacks it."""
    if category not in taxonomy.categories:
        raise InputError(
            f"the taxonomy {taxonomy.name!r} has no category {category!r}: "
            f"{nearest(category, taxonomy.categories)}"
        )
    return category


def category_folders(folder: Path, taxonomy: Taxonomy) -> dict[str, Path]:
    """The folders within a folder by category. Raises InputError if there are none, or others."""
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}: give one that holds a folder for a category")
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not inner:
        raise InputError(
            f"{str(folder)!r} holds no folders: give one with a folder of pictures for each of "
            f"{', '.join(taxonomy.categories)}"
        )
    return {check_category(path.name, taxonomy): path for path in inner}
