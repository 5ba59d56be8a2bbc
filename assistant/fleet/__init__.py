"""Live servers by name or address, one or hundreds: how each is looked at, and what their figures say together."""
