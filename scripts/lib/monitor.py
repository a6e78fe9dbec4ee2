"""The monitor of a processor: how it is built, and where it then is."""

import rust
from places import VIVARIUM

BUILD = ["build", "--release", "--bin", "vivarium"]


def build(processor):
    """The command that builds it, what that finds in its environment, and the program's path. Installs what the build needs."""
    if processor.native:
        rust.ensure()
        return ["cargo", *BUILD], {}, VIVARIUM
    environment = rust.ensure_cross(processor)
    program = rust.cross_target(processor) / processor.target / "release" / "vivarium"
    return [rust.cargo(environment), *BUILD, "--target", processor.target], environment, program
