"""The command line: one module a sub-command, and what all commands share (:mod:`.command`)."""

from ..core.console import progress_bar as progress_bar
from .command import add_config_arguments as add_config_arguments
from .command import add_override_argument as add_override_argument
from .command import parser as parser
from .command import run as run
