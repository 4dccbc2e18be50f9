"""Checks the installed wheel; run by `make wheel` with the Python of a bare environment."""

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

PACKAGES = ("hypertune_mip", "hypertune_mip_optuna", "hypertune_mip_ray", "hypertune_mip_sklearn")
WITHOUT_EXTRA = {  # what the message has to name
    "hypertune_mip_ray": "hypertune-mip[ray]",
    "hypertune_mip_sklearn": "hypertune-mip[sklearn]",
}


def main() -> None:
    """Exits with a message at the first thing that is wrong with the installed wheel."""
    files = importlib.metadata.files("hypertune-mip") or []
    top_level = {file.parts[0] for file in files if not file.parts[0].endswith(".dist-info")}
    if top_level != set(PACKAGES):
        sys.exit(f"The wheel must install exactly {sorted(PACKAGES)}, but got {sorted(top_level)}.")

    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not Path(spec.origin or "").with_name("py.typed").is_file():
            sys.exit(f"{name!r} must ship py.typed, but the file is missing.")
        try:
            importlib.import_module(name)
        except ImportError as error:
            if name not in WITHOUT_EXTRA or WITHOUT_EXTRA[name] not in str(error):
                raise

    version = importlib.metadata.version("hypertune-mip")
    print(f"The wheel of hypertune-mip {version} installs and imports {', '.join(PACKAGES)}.")


if __name__ == "__main__":
    main()
