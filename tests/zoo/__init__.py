"""Architectures of other packages, by the names under which docs/compatibility.md lists them."""

from tests.zoo import language, others, vision
from tests.zoo.architecture import Architecture

ZOO: dict[str, Architecture] = {
    f"{name} ({row.package.partition('.')[0]})": row
    for part in (language, vision, others)
    for name, row in part.ROWS.items()
}
