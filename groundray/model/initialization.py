"""How new layers are initialized. The settings have the same names; modules of tensors import no settings."""

from typing import Literal

Initialization = Literal["identity", "pytorch"]
OperatorInitialization = Literal["normal", "xavier"]
